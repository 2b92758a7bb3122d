"""Tokens, rounds and speed of drafting, by hand and by simulation."""

import random

import pytest

from lightning_kd.functional import (
    best_window,
    replayed_rounds,
    speculative_speedup,
    tokens_per_round,
)


@pytest.mark.parametrize(("acceptance", "tokens"), [(0.0, 1.0), (1.0, 5.0), (0.5, 1.9375)])
def test_tokens_per_round_by_hand(acceptance, tokens) -> None:
    assert tokens_per_round(acceptance, 4) == tokens
    assert tokens_per_round(acceptance, 0) == 1


def test_the_formula_is_the_mean_of_replayed_rounds() -> None:
    draw = random.Random(0)
    agrees = [draw.random() < 0.8 for _ in range(100_000)]
    rounds = replayed_rounds(agrees, 4)
    assert len(agrees) / rounds == pytest.approx(tokens_per_round(0.8, 4), rel=0.01)


@pytest.mark.parametrize(
    ("agrees", "window", "rounds"),
    [
        ([], 3, 0),
        ([True], 3, 1),
        ([False, False, False], 3, 3),
        ([True] * 8, 3, 2),  # three right ones and the full model's own
        ([True, True, True, False, True, False], 3, 2),
    ],
)
def test_rounds_by_hand(agrees, window, rounds) -> None:
    assert replayed_rounds(agrees, window) == rounds


def test_speed_counts_the_costs() -> None:
    assert speculative_speedup(1.0, 4, draft_cost=0.25) == 5 / 2
    assert speculative_speedup(1.0, 4, draft_cost=0.25, verify_cost=1.5) == 2
    assert speculative_speedup(0.0, 1, draft_cost=0.5) == 1 / 1.5


def test_the_best_window_grows_with_acceptance() -> None:
    windows = [best_window(acceptance / 20, 0.2) for acceptance in range(21)]
    assert windows == sorted(windows)
    assert (windows[0], windows[-1]) == (1, 8)
    assert best_window(1.0, 0.2, max_window=5) == 5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tokens_per_round(1.1, 2), r"acceptance must be in \[0, 1\], got 1.1"),
        (lambda: tokens_per_round(0.5, -1), "window must be at least 0, got -1"),
        (lambda: speculative_speedup(0.5, 2, 0.0), "costs must be positive, got 0.0"),
    ],
)
def test_values_out_of_range_are_refused(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()
