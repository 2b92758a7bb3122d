"""The best spans against a loop over all pairs."""

import math

import pytest
import torch

from lightning_kd.functional import best_spans, best_threshold


def by_loop(logits, max_length) -> list[tuple[float, tuple[int, int]]]:
    length = logits.shape[-1]
    pairs = [
        (float(logits[0, i] + logits[1, j]), (i, j))
        for i in range(1, length)
        for j in range(i, min(length, i + max_length))
    ]
    return sorted(pairs, reverse=True)


@pytest.mark.parametrize("max_length", [1, 3, 7, 50])
def test_they_are_those_of_a_loop_over_all_pairs(max_length) -> None:
    logits = torch.randn(5, 2, 7)
    spans, scores = best_spans(logits, 4, max_length)
    for row, found, values in zip(logits, spans.tolist(), scores.tolist(), strict=True):
        expected = by_loop(row, max_length)[:4]
        assert values == pytest.approx([score for score, _ in expected])
        assert [tuple(span) for span in found] == [span for _, span in expected]


def test_a_high_end_before_the_start_and_position_zero_are_not_taken() -> None:
    logits = torch.tensor([[[9.0, 0.0, 5.0, 0.0], [9.0, 5.0, 0.0, 1.0]]])
    spans, scores = best_spans(logits)
    assert spans.tolist() == [[[2, 3]]]
    assert scores.tolist() == [[6.0]]


def test_forbidden_places_are_in_no_span_and_what_is_missing_scores_minus_infinity() -> None:
    logits = torch.randn(1, 2, 4)
    logits[:, :, 3] = -torch.inf
    spans, scores = best_spans(logits, 12)
    assert scores.shape == (1, 12)
    assert scores.isfinite().sum() == 3  # 1-1, 1-2, 2-2
    assert spans[scores.isfinite()].max() == 2
    assert spans.max() <= 3
    assert best_spans(torch.randn(1, 2, 1), 3)[1].tolist() == [[-math.inf] * 3]


def test_halves_are_added_in_full_precision() -> None:
    assert best_spans(torch.randn(2, 2, 5).bfloat16())[1].dtype == torch.float32


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"max_length": 0}])
def test_fewer_than_one_is_an_error(wrong) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got"):
        best_spans(torch.randn(1, 2, 4), **wrong)


def mean_score(threshold, margin, answered, unanswered) -> float:
    """By a loop over the questions."""
    rows = zip(margin.tolist(), answered.tolist(), unanswered.tolist(), strict=True)
    return sum(none if m > threshold else span for m, span, none in rows) / len(margin)


def test_no_threshold_is_better_than_the_best() -> None:
    """Against a fine grid; margins with ties, as quantized models give them."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        margin = torch.randint(-4, 5, (9,), generator=generator).float()
        given = torch.rand(2, 9, generator=generator).round(decimals=1)
        best = best_threshold(margin, *given)
        grid = [mean_score(t / 2, margin, *given) for t in range(-20, 21)]
        assert mean_score(best, margin, *given) == pytest.approx(max(grid))


def test_margins_that_are_no_numbers_decide_nothing() -> None:
    margin = torch.tensor([math.nan, math.inf, 1.0])
    assert best_threshold(margin, torch.tensor([9.0, 9.0, 0.0]), torch.tensor([0.0, 0, 1])) == 0.0
    assert best_threshold(margin[:2], torch.ones(2), torch.zeros(2)) == 0.0
    assert best_threshold(margin[2:], torch.ones(1), torch.zeros(1)) == 1.0
