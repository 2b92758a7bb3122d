r"""What exits know and how they are judged: distances to another model's states, a judge's score.

Letters in shapes: ``e`` exits, ``t`` positions, ``d`` hidden width, ``V`` vocabulary, ``n``
pairs of answers. Source: Kavehzadeh et al. (2024), arXiv 2309.08968, sections 3 and 4.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lightning_kd.functional.linear_cross_entropy import CHUNK_SIZE
from lightning_kd.functional.token_kd import linear_kd_loss


@torch.no_grad()
def exit_distances(
    exits: Sequence[Float[Tensor, "t d"]],
    weight: Float[Tensor, "V d"],
    reference: Float[Tensor, "t d"],
    reference_weight: Float[Tensor, "V d"],
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Float[Tensor, "e t"], Float[Tensor, "e t"]]:
    r"""``(divergence, similarity)`` of exits to a reference, position by position.

    The divergence is :math:`KL(reference \| exit)` of the next-token distributions, the similarity
    the cosine of the states; 0 and 1 where they agree. The paper does not say which way its
    divergence goes, or whether its states are normalized.

    Args:
        exits: States after the final norm, of the same tokens.
        weight: Of the exits' head.
        reference: The state that they are compared with, such as another model's last one.
        reference_weight: Of its head.
        chunk_size: Positions whose logits are in memory at once.

    >>> states, head = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    >>> divergence, similarity = exit_distances([states, states.flip(1)], head, states, head)
    >>> divergence, similarity
    (tensor([[0.0000],
             [0.4621]]), tensor([[1.],
             [0.]]))
    """
    divergences = [
        linear_kd_loss(state, weight, reference, reference_weight, chunk_size=chunk_size)
        for state in exits
    ]
    similarities = [cosine_similarity(state, reference, -1) for state in exits]
    return torch.stack(divergences), torch.stack(similarities)


def preference_score(verdicts: Int[Tensor, "n 2"]) -> tuple[float, float, float, float]:
    r"""``(score, wins, losses, ties)`` of one system's answers over another's.

    The score is :math:`(W - L) / (W + L + T)`: 1 when a judge always prefers the first system, -1
    when it always prefers the second. The paper prints ``T`` alone below the line; its tables have
    the whole. Each pair is judged twice, with the answers in either order, and counts are averaged.

    Args:
        verdicts: 1 where the first system won, -1 where the second did, 0 for a tie; one column per
            order in which the judge saw the two.

    Raises:
        ValueError: No pair, or another number.

    >>> verdicts = torch.tensor([[1, 1]] * 71 + [[-1, -1]] * 99)
    >>> preference_score(verdicts)
    (-0.1647, 71.0, 99.0, 0.0)
    """
    if not len(verdicts):
        raise ValueError("there is no verdict to count; give at least one pair")
    wins, losses, ties = (float((verdicts == value).sum()) / 2 for value in (1, -1, 0))
    if wins + losses + ties != len(verdicts):
        raise ValueError("verdicts must be 1, 0 or -1; give the judge's others as ties")
    return (wins - losses) / len(verdicts), wins, losses, ties


__all__ = ["exit_distances", "preference_score"]
