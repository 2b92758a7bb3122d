"""The rate of each step while averaging, and that a schedule does not notice."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, OneCycleLR, ReduceLROnPlateau

from lightning_kd.callbacks.averaging_rate import AveragingRate
from tests.callbacks.counting import Counter, averaging, fit

DECAY = partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=8)
"""1, 0.875, 0.75, ... 0.125 in eight updates."""
PLAIN = [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]


def rates(schedule=DECAY, batches=8, **settings) -> list[float]:
    module = Counter(batches, schedule=schedule)
    fit(module, averaging(**{"start_fraction": 0.5, **settings}))
    return module.rates


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr_mode": "none"}, PLAIN),
        ({"lr_mode": "hold"}, [*PLAIN[:4], *[0.625] * 4]),
        ({"lr_mode": "peak"}, [*PLAIN[:4], *[1.0] * 4]),
        ({"lr_mode": "value", "averaging_lr": 0.3}, [*PLAIN[:4], *[0.3] * 4]),
        (
            {"lr_mode": "cyclic", "averaging_lr": 0.05, "lowest_lr": 0.01, "every": 4},
            [*PLAIN[:4], 0.04, 0.03, 0.02, 0.01],  # C10
        ),
        ({"lr_mode": "hold", "start_fraction": 0.0}, [1.0] * 8),
    ],
)
def test_rate_of_every_update(settings, expected) -> None:
    assert rates(**settings) == expected


def test_izmailovs_rates_replace_the_schedule_from_the_first_update() -> None:
    found = rates(None, batches=20, lr_mode="izmailov", averaging_lr=0.5, start_fraction=0.5)
    assert found == [*[1.0] * 6, 0.875, 0.75, 0.625, *[0.5] * 11]


def test_snapshots_of_a_cycle_are_at_its_lowest_rate() -> None:
    module = Counter(8)
    callback = averaging(lr_mode="cyclic", averaging_lr=0.05, lowest_lr=0.01, every=4)
    fit(module, callback)
    assert callback.num_averaged == 2
    assert module.value == pytest.approx((0.1 + 0.2) / 2)


@pytest.mark.parametrize(
    "schedule",
    [DECAY, partial(ExponentialLR, gamma=0.9), partial(OneCycleLR, max_lr=2.0, total_steps=9)],
)
def test_a_schedule_goes_on_as_if_there_were_no_averaging(schedule) -> None:
    ends = []
    for callbacks in ([], [averaging(lr_mode="value", averaging_lr=0.3)]):
        module = Counter(8, schedule=schedule)
        trainer = fit(module, *callbacks)
        (config,) = trainer.lr_scheduler_configs
        state = dict(config.scheduler.state_dict())
        state.pop("_step_count", None)
        ends.append((state, trainer.optimizers[0].param_groups[0]["lr"]))
    assert str(ends[0]) == str(ends[1])


def test_the_peak_of_a_schedule_that_rises_above_the_optimizers_rate_is_its_own() -> None:
    found = rates(partial(OneCycleLR, max_lr=2.0, total_steps=8, pct_start=0.3), lr_mode="peak")
    assert max(found[:4]) > 1.0
    assert found[4:] == [max(found[:4])] * 4


def test_a_plateau_schedule_is_left_alone() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rate = ReduceLROnPlateau(optimizer, patience=0), AveragingRate("value", 0.3)
    for metric in (1.0, 2.0):
        rate.begin_step(optimizer, 1, 0, 1)
        assert optimizer.param_groups[0]["lr"] == 0.3
        rate.end_step()
        schedule.step(metric)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_groups_keep_their_proportions() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.4)]
    optimizer, rate = torch.optim.SGD(groups), AveragingRate("value", 0.2)
    rate.begin_step(optimizer, 1, 0, 1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.2])
    rate.end_step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.4]


def test_after_an_error_the_schedules_rate_is_back() -> None:
    class Fails(Counter):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise OSError("the disk is gone")
            return super().training_step(batch, batch_idx)

    module = Fails(batches=4)
    callback = averaging(lr_mode="value", averaging_lr=0.3)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(module, callback)
    assert module.rates == [0.3, 0.3]
    (group,) = module.optimizers().param_groups  # type: ignore[union-attr]
    assert group["lr"] == 1.0


def test_a_tensor_rate_stays_the_same_tensor() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=torch.tensor(0.5), capturable=False)
    tensor, rate = optimizer.param_groups[0]["lr"], AveragingRate("value", 0.25)
    rate.begin_step(optimizer, 1, 0, 1)
    assert optimizer.param_groups[0]["lr"] is tensor
    assert tensor.item() == 0.25
    rate.end_step()
    assert tensor.item() == 0.5


def test_a_rate_of_zero_is_not_held() -> None:
    warm_up = partial(LinearLR, start_factor=1e-30, end_factor=1.0, total_iters=4)
    assert rates(warm_up, start_fraction=0.0, lr_mode="peak") == [1.0] * 8
    zero = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: step / 8)
    with pytest.raises(ValueError, match="lr_mode=hold would average at learning rate 0"):
        rates(zero, start_fraction=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "high"}, "lr_mode must be hold, value, .* or none, got 'high'"),
        ({"mode": "value"}, "lr_mode=value needs averaging_lr, got None"),
        ({"mode": "hold", "lr": 0.1}, "lr_mode=hold does not use averaging_lr, got 0.1"),
        ({"mode": "cyclic", "lr": 0.1}, "lr_mode=cyclic needs lowest_lr, got None"),
        ({"mode": "value", "lr": 0.0}, "averaging_lr must be above 0, got 0.0"),
        (
            {"mode": "cyclic", "lr": 0.1, "lowest_lr": 0.2},
            "between 0 and averaging_lr=0.1, got 0.2",
        ),
    ],
)
def test_a_setting_that_does_not_fit_its_mode_is_named(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        AveragingRate(**settings)
