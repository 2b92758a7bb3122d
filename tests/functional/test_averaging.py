"""The spec's numbers for the mean, the choice of snapshots and the rates."""

import math

import pytest
import torch
from torch import nn

from lightning_kd.functional import (
    averaging_start,
    cyclic_rate,
    is_snapshot,
    izmailov_rate,
    running_mean_,
)


def snapshots(total, fraction, every=1) -> list[int]:
    start = averaging_start(fraction, total)
    return [t for t in range(1, total + 1) if is_snapshot(t, start, every)]


def test_mean_along_an_oscillating_descent() -> None:  # C1
    weight, mean, seen = torch.tensor([1.0]), torch.empty(1), []
    for count in range(3):
        weight = weight - 1.5 * weight  # gradient of w^2 / 2
        running_mean_([mean], [weight], count)
        seen.append(mean.item())
    assert seen == [-0.5, -0.125, -0.125]


def test_mean_is_the_arithmetic_one_in_any_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [[torch.randn(s, generator=generator) for s in ((3, 4), (5,))] for _ in range(30)]
    means = [torch.full(s, math.nan) for s in ((3, 4), (5,))]  # whatever was there before
    for count, snapshot in enumerate(values):
        running_mean_(means, snapshot, count)
    for place, mean in enumerate(means):
        assert torch.allclose(mean, torch.stack([v[place] for v in values]).mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("total", "fraction", "every", "chosen"),
    [
        (10, 0.5, 1, [6, 7, 8, 9, 10]),
        (10, 0.5, 2, [7, 9]),
        (7, 0.5, 1, [4, 5, 6, 7]),
        (7, 0.0, 1, [1, 2, 3, 4, 5, 6, 7]),
        (7, 1.0, 1, []),
        (100, 0.29, 10, [39, 49, 59, 69, 79, 89, 99]),
    ],
)
def test_snapshots_are_those_of_the_table(total, fraction, every, chosen) -> None:  # C2
    assert snapshots(total, fraction, every) == chosen


def test_mean_of_a_noisy_walk_has_the_predicted_variance() -> None:  # C3, 4000 chains
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(4000)
    mean = torch.zeros(4000)
    for step in range(1200):
        weight = weight - 0.1 * (weight + torch.randn(4000, generator=generator))
        if step >= 200:
            running_mean_([mean], [weight], step - 200)
    assert weight.var().item() == pytest.approx(0.052632, rel=0.08)
    assert mean.var().item() == pytest.approx(9.905e-4, rel=0.08)
    assert 45 <= weight.var() / mean.var() <= 60


def test_of_a_convex_loss_the_mean_is_never_worse_than_the_mean_loss() -> None:  # C4
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = (inputs[:, 0] + torch.randn(60, generator=generator) > 0).double()

    def loss(weight):
        return nn.functional.binary_cross_entropy_with_logits(inputs @ weight, labels)

    for rate in (0.5, 5.0, 50.0):
        weight = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        mean, losses = torch.zeros(5, dtype=torch.float64), []
        for count in range(40):
            (grad,) = torch.autograd.grad(loss(weight), weight)
            weight = (weight - rate * grad).detach().requires_grad_()
            running_mean_([mean], [weight.detach()], count)
            losses.append(loss(weight).item())
        assert loss(mean).item() <= sum(losses) / len(losses)


def test_half_precision_would_stand_still_where_single_moves() -> None:  # C9
    snapshot = torch.tensor([1.02], dtype=torch.bfloat16)
    assert snapshot.item() == 1.0234375
    half, single = torch.ones(1, dtype=torch.bfloat16), torch.ones(1)
    for count in range(10, 200):
        running_mean_([half], [snapshot], count)
        running_mean_([single], [snapshot], count)
    assert half.item() == 1.0
    assert single.item() == pytest.approx(1.022266, abs=1e-6)


def test_cycle_and_izmailovs_schedule_have_the_published_rates() -> None:  # C10
    rates = [round(cyclic_rate(i, 4, 0.05, 0.01), 6) for i in range(1, 9)]
    assert rates == [0.04, 0.03, 0.02, 0.01] * 2
    assert [t for t in range(1, 9) if is_snapshot(t, 0, 4)] == [
        i for i, rate in enumerate(rates, 1) if rate == 0.01
    ]
    table = {40: 0.1, 70: 0.075, 95: 0.05}
    assert {e: round(izmailov_rate(e, 100, 0.1, 0.05), 6) for e in table} == table
    assert izmailov_rate(0, 0, 0.1, 0.05) == 0.05


def test_values_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1.5"):
        averaging_start(1.5, 10)
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        running_mean_([], [], -1)
