"""Confidence by hand, and thresholds against a search of all."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_kd.functional import CONFIDENCES, agreement_threshold, exit_confidence


@pytest.mark.parametrize("kind", CONFIDENCES)
def test_extremes(kind) -> None:
    sure = torch.tensor([[0.0, 200.0, -200.0]])
    torch.testing.assert_close(exit_confidence(sure, kind), torch.ones(1))
    even = exit_confidence(torch.zeros(2, 4), kind)
    torch.testing.assert_close(even, torch.full((2,), 0.25 if kind == "max_prob" else 0.0))


def test_hand_computed() -> None:
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    assert exit_confidence(logits, "max_prob").item() == pytest.approx(0.5)
    assert exit_confidence(logits, "margin").item() == pytest.approx(0.25)
    entropy = 1.5 * math.log(2)
    assert exit_confidence(logits, "entropy").item() == pytest.approx(1 - entropy / math.log(3))


def test_an_impossible_class_does_not_spoil_the_entropy() -> None:
    logits = torch.tensor([0.0, 0.0, -math.inf])
    expected = 1 - math.log(2) / math.log(3)
    assert exit_confidence(logits, "entropy").item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", CONFIDENCES)
def test_half_precision_logits_are_as_sure_as_the_same_in_single(kind) -> None:
    logits = 5 * torch.randn(3, 2000, generator=torch.Generator().manual_seed(0))
    half = logits.bfloat16()
    torch.testing.assert_close(
        exit_confidence(half, kind), exit_confidence(half.float(), kind), rtol=0, atol=0
    )


levels = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])


@given(st.lists(st.tuples(levels, st.booleans()), min_size=1, max_size=12), levels)
def test_thresholds_are_the_lowest_that_a_search_finds(rows, target) -> None:
    sure = torch.tensor([confidence for confidence, _ in rows])
    right = torch.tensor([agrees for _, agrees in rows])
    found = agreement_threshold(sure, right, target)
    good = []
    for threshold in [-1.0, *sorted(set(sure.tolist()))]:  # as fp32 has them
        above = right[sure > threshold]
        if len(above) and above.double().mean() >= target:
            good.append(threshold)
    assert found == (min(good) if good else math.inf)


def test_nothing_to_go_by_trusts_nothing() -> None:
    nothing = torch.zeros(0)
    assert agreement_threshold(nothing, nothing.bool(), 0.5) == math.inf


@pytest.mark.parametrize("target", [-0.1, 1.1])
def test_a_target_that_is_no_share_is_refused(target) -> None:
    with pytest.raises(ValueError, match=rf"got {target}"):
        agreement_threshold(torch.ones(1), torch.ones(1).bool(), target)
