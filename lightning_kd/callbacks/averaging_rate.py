"""The learning rate while weights are averaged: high and constant, or in cycles."""

from typing import Any, Literal

import torch
from torch.optim import Optimizer

from lightning_kd.functional import cyclic_rate, izmailov_rate

__all__ = ["AveragingRate", "LRMode"]

LRMode = Literal["hold", "value", "peak", "cyclic", "izmailov", "none"]


class AveragingRate:
    r"""Sets an optimizer's learning rates for the length of a step, then puts them back.

    Schedulers therefore never meet a rate that is not theirs: they go on as they would, whatever
    kind they are, and are saved and restored as always.

    Groups of an optimizer keep their proportions: a rate that is given is that of the group with
    the highest one.

    Args:
        mode: ``hold`` the rate of the last update before averaging (of the first one where there is
            none before): begin after the warm-up; ``peak``: the highest rate so far, the
            optimizer's own included; ``value``: what is given; ``cyclic`` from ``lr`` down to
            ``lowest_lr`` in each period; ``izmailov``: `izmailov_rate` from the first update on,
            from the optimizer's rate to ``lr``; ``none`` leaves the rate to the scheduler.
        lr: For ``value``, ``cyclic`` and ``izmailov``; above 0.
        lowest_lr: For ``cyclic``, in [0, ``lr``].
        every: Length of a cycle in updates.

    Raises:
        ValueError: Unknown mode, a rate that it needs and has not or that it would ignore, or one
            out of range.
    """

    def __init__(
        self, mode: LRMode, lr: float | None = None, lowest_lr: float | None = None, every: int = 1
    ) -> None:
        if mode not in ("hold", "value", "peak", "cyclic", "izmailov", "none"):
            raise ValueError(
                f"lr_mode must be hold, value, peak, cyclic, izmailov or none, got {mode!r}"
            )
        for name, value, modes in (
            ("averaging_lr", lr, ("value", "cyclic", "izmailov")),
            ("lowest_lr", lowest_lr, ("cyclic",)),
        ):
            if (value is None) == (mode in modes):
                verb = "needs" if value is None else "does not use"
                raise ValueError(f"lr_mode={mode} {verb} {name}, got {value}")
        if lr is not None and not lr > 0:
            raise ValueError(f"averaging_lr must be above 0, got {lr}")
        if lowest_lr is not None and lr is not None and not 0 <= lowest_lr <= lr:
            raise ValueError(f"lowest_lr must be between 0 and averaging_lr={lr}, got {lowest_lr}")
        self.mode, self.lr, self.lowest_lr, self.every = mode, lr, lowest_lr, every
        self.last: list[float] = []
        self.highest: list[float] = []
        self._changed: tuple[Optimizer, list[Any]] | None = None

    def begin_step(
        self, optimizer: Optimizer, position: int, start: int, update: int | None
    ) -> None:
        """Set the rates of an update.

        Args:
            optimizer: Its groups' ``lr`` are those of the schedule.
            position: Updates (or epochs) done.
            start: Of them before averaging begins.
            update: Number of the update within the averaging phase, from 1; None: still before it.

        Raises:
            ValueError: The rate to go on with is 0.
        """
        self.end_step()  # of one that failed
        groups = optimizer.param_groups
        rates = [float(group["lr"]) for group in groups]
        initial = [float(g.get("initial_lr", rate)) for g, rate in zip(groups, rates, strict=True)]
        if update is None or not self.last:
            self.last = rates
            before = self.highest + initial[len(self.highest) :]
            self.highest = [max(three) for three in zip(rates, initial, before, strict=True)]
        if self.mode == "none" or (update is None and self.mode != "izmailov"):
            return
        rates = self._rates(rates, initial, position, start, update)
        if self.mode in ("hold", "peak") and not any(rates):
            raise ValueError(
                f"lr_mode={self.mode} would average at learning rate 0, which the schedule has "
                "there; begin later, or use lr_mode=peak or value"
            )
        self._changed = optimizer, [_read(group) for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            _write(group, rate)

    def end_step(self) -> None:
        """Put the schedule's rates back, if there is a step whose rates were set."""
        if self._changed is not None:
            optimizer, rates = self._changed
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                _write(group, rate)
        self._changed = None

    def state_dict(self) -> dict[str, list[float]]:
        """What a resumed training needs."""
        return {"last": self.last, "highest": self.highest}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Take it over."""
        self.last, self.highest = list(state["last"]), list(state["highest"])

    def _rates(
        self,
        rates: list[float],
        initial: list[float],
        position: int,
        start: int,
        update: int | None,
    ) -> list[float]:
        # Groups that joined after averaging began have no past: they stay with their schedule.
        if self.mode == "hold":
            return self.last + rates[len(self.last) :]
        if self.mode == "peak":
            return self.highest + rates[len(self.highest) :]
        top, rate = max(initial) or 1.0, self.lr or 0.0
        if self.mode == "izmailov":
            return [izmailov_rate(position, start, own, rate * own / top) for own in initial]
        if self.mode == "cyclic":
            rate = cyclic_rate(update or 1, self.every, rate, self.lowest_lr or 0.0)
        return [rate * own / top for own in initial]


def _read(group: dict[str, Any]) -> Any:
    lr = group["lr"]
    return lr.clone() if isinstance(lr, torch.Tensor) else lr


def _write(group: dict[str, Any], lr: Any) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].copy_(torch.as_tensor(lr))  # in place: a captured graph reads this very tensor
    else:
        group["lr"] = lr
