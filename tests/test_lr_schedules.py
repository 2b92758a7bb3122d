"""Learning rates over the steps of a training, in closed form."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_kd.optim import lr_scheduler


def rates(schedule: str, warmup_fraction: float, steps: int = 20) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=2.0)
    scheduler = lr_scheduler(optimizer, schedule, warmup_fraction, steps)
    found = []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "steps"])
def test_warm_up_is_a_straight_line_to_the_peak(schedule) -> None:
    assert rates(schedule, 0.25)[:6] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2.0])


def test_linear_and_cosine_end_at_zero_and_constant_stays() -> None:
    left = np.arange(15, -1, -1) / 15
    assert rates("linear", 0.25)[5:] == pytest.approx(2 * left)
    assert rates("cosine", 0.25)[5:] == pytest.approx(1 - np.cos(np.pi * left))
    assert rates("constant", 0.25)[5:] == [2.0] * 16


def test_steps_fall_to_a_tenth_at_half_and_again_at_three_quarters() -> None:
    assert rates("steps", 0.0) == pytest.approx([2.0] * 10 + [0.2] * 5 + [0.02] * 6)
    assert rates("steps", 0.0, 7)[3:6] == pytest.approx([2.0, 0.2, 0.2])  # 3.5 and 5.25 of 7


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates("linear", 0.0)[0] == 2.0


@pytest.mark.parametrize(
    ("schedule", "warmup_fraction", "message"),
    [
        ("step", 0.1, "lr_schedule must be one of linear, cosine, constant, steps, got 'step'"),
        ("linear", -0.1, "warmup_fraction must be between 0 and 1, got -0.1"),
        ("linear", 6.0, "warmup_fraction must be between 0 and 1, got 6.0"),
    ],
)
def test_an_unknown_schedule_or_fraction_is_named(schedule, warmup_fraction, message) -> None:
    with pytest.raises(ValueError, match=message):
        rates(schedule, warmup_fraction)
