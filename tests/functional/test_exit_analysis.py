"""Distances of exits by hand, and scores as the paper's tables have them."""

import math

import pytest
import torch

from lightning_kd.functional import exit_distances, kd_loss, preference_score


def test_distances_are_those_of_the_whole_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    exits = [torch.randn(5, 4, generator=generator) for _ in range(3)]
    reference = torch.randn(5, 4, generator=generator)
    head, other = (torch.randn(9, 4, generator=generator) for _ in range(2))
    divergence, similarity = exit_distances(exits, head, reference, other, chunk_size=2)
    for row, state in enumerate(exits):
        expected = kd_loss(state @ head.t(), reference @ other.t())
        torch.testing.assert_close(divergence[row], expected)
        norms = state.norm(dim=1) * reference.norm(dim=1)
        torch.testing.assert_close(similarity[row], (state * reference).sum(1) / norms)


def test_two_coins_by_hand() -> None:
    """From odds of e : 1 to 1 : e the divergence is tanh(1/2)."""
    states = torch.tensor([[1.0, 0.0]])
    divergence, _ = exit_distances([states.flip(1)], torch.eye(2), states, torch.eye(2))
    assert float(divergence) == pytest.approx(math.tanh(0.5))


def verdicts(wins, losses, ties) -> torch.Tensor:
    """So many in the two orders together."""
    flat = [1] * wins + [-1] * losses + [0] * ties
    return torch.tensor(flat).view(2, -1).t()


@pytest.mark.parametrize(
    ("counts", "score"), [((142, 198, 0), -0.1647), ((105, 125, 110), -0.0588), ((0, 0, 2), 0.0)]
)
def test_scores_are_those_of_the_table(counts, score) -> None:
    found = preference_score(verdicts(*counts))
    assert found == pytest.approx((score, *(count / 2 for count in counts)), abs=5e-5)


def test_an_order_that_decides_is_worth_nothing() -> None:
    assert preference_score(torch.tensor([[1, -1]] * 4)) == (0.0, 2.0, 2.0, 0.0)


def test_other_verdicts_are_refused() -> None:
    with pytest.raises(ValueError, match="must be 1, 0 or -1"):
        preference_score(torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="no verdict"):
        preference_score(torch.zeros(0, 2).long())
