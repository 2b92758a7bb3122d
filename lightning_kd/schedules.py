"""Numbers that change while training: pure functions of :class:`~lightning_kd.progress.Progress`.

A schedule keeps no state, so there is nothing to save: a resumed run evaluates the same function.
:class:`~lightning_kd.callbacks.Anneal` sets a module's attributes from them.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from lightning_kd.progress import Progress

__all__ = ["Constant", "Cosine", "Linear", "Schedule", "StepDown"]


class Schedule(ABC):
    """A number as a function of progress; subclass it and define ``__call__`` to add your own."""

    @abstractmethod
    def __call__(self, progress: Progress) -> float:
        """Value at this point of the training."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same number always: switches a schedule off without touching the code that reads it.

    Args:
        value: Any finite number.

    >>> Constant(4.0)(Progress(step=3, max_steps=10, epoch=0, max_epochs=1))
    4.0
    """

    value: float

    def __post_init__(self) -> None:
        _require_finite(self, value=self.value)

    def __call__(self, progress: Progress) -> float:  # noqa: ARG002 - every schedule takes it
        """``value``."""
        return float(self.value)


@dataclass(frozen=True)
class Linear(Schedule):
    r"""Straight line: :math:`start + (end - start) \cdot \min(fraction / until, 1)`.

    ``until=1`` is on the way to ``end`` during the last batch still; ``until=0.5`` arrives there
    half-way and stays. ``start == end`` is :class:`Constant`.

    Args:
        start: Value of the first batch.
        end: Value from ``until`` on.
        until: Fraction of the training at which ``end`` is reached, in (0, 1].

    >>> halves = Linear(start=1.0, end=0.0, until=0.5)
    >>> [halves(Progress(step, max_steps=8, epoch=0, max_epochs=1)) for step in range(8)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]
    """

    start: float
    end: float
    until: float = 1.0

    def __post_init__(self) -> None:
        _require_finite(self, start=self.start, end=self.end)
        if not 0 < self.until <= 1:
            raise ValueError(
                f"Linear: until is a fraction of the training in (0, 1], got {self.until}"
            )

    def __call__(self, progress: Progress) -> float:
        """Value at ``progress.fraction``."""
        way = min(progress.fraction / self.until, 1.0)
        return (1 - way) * self.start + way * self.end  # exact at both ends


@dataclass(frozen=True)
class StepDown(Schedule):
    r"""Staircase by epochs: :math:`\max(end, start - step \cdot \lfloor epoch / every \rfloor)`.

    Annealing-KD's temperature (Jafari et al., 2021) goes from its largest value down to 1 in whole
    steps. With ``every_epochs=None`` the stairs share all epochs of the run evenly,
    :math:`start - step \cdot \lfloor epoch \cdot n / max\_epochs \rfloor` for :math:`n` stairs, and
    the last stair belongs to the last epochs; with fewer epochs than stairs some are left out.
    ``start == end`` is :class:`Constant`.

    Args:
        start: Value of the first epoch.
        end: Lowest value, kept from the epoch that reaches it; at most ``start``.
        step: Height of a stair, above 0.
        every_epochs: Length of a stair in epochs, at least 1; None divides the run evenly.

    >>> down = StepDown(start=4, end=1)
    >>> [down(Progress(0, None, epoch, max_epochs=6)) for epoch in range(6)]
    [4.0, 3.0, 2.0, 1.0, 1.0, 1.0]
    >>> evenly = StepDown(start=3, end=1, every_epochs=None)
    >>> [evenly(Progress(0, None, epoch, max_epochs=6)) for epoch in range(6)]
    [3.0, 3.0, 2.0, 2.0, 1.0, 1.0]
    """

    start: float
    end: float
    step: float = 1.0
    every_epochs: int | None = 1

    def __post_init__(self) -> None:
        _require_finite(self, start=self.start, end=self.end, step=self.step)
        if self.end > self.start:
            raise ValueError(
                f"StepDown goes down: end={self.end} is above start={self.start}; "
                "use Linear for a rising value"
            )
        if self.step <= 0:
            raise ValueError(f"StepDown: step must be above 0, got {self.step}")
        if self.every_epochs is not None and self.every_epochs < 1:
            raise ValueError(
                f"StepDown: every_epochs must be at least 1 (or null), got {self.every_epochs}"
            )

    def __call__(self, progress: Progress) -> float:
        """Value in ``progress.epoch``."""
        stairs_down = self._stairs_down(progress)
        return float(max(self.end, self.start - self.step * stairs_down))

    def _stairs_down(self, progress: Progress) -> int:
        if self.every_epochs is not None:
            return progress.epoch // self.every_epochs
        if progress.max_epochs is None:
            raise ValueError(
                "StepDown with every_epochs=null divides the training into equal stairs and needs "
                "its length; set trainer.max_epochs or every_epochs"
            )
        stairs = math.ceil((self.start - self.end) / self.step) + 1
        return progress.epoch * stairs // max(progress.max_epochs, 1)


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Half a cosine: :math:`end + (start - end) (1 + \cos(\pi \cdot fraction)) / 2`.

    Flat at both ends, steepest in the middle, where the value is the mean of the two.

    Args:
        start: Value of the first batch.
        end: Value the training ends with.

    >>> cosine = Cosine(start=1.0, end=0.0)
    >>> [round(cosine(Progress(step, 4, epoch=0, max_epochs=1)), 4) for step in range(5)]
    [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        _require_finite(self, start=self.start, end=self.end)

    def __call__(self, progress: Progress) -> float:
        """Value at ``progress.fraction``."""
        weight = (1 + math.cos(math.pi * progress.fraction)) / 2
        return weight * self.start + (1 - weight) * self.end


def _require_finite(schedule: Schedule, **values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{type(schedule).__name__}: {name} must be a finite number, got {value}"
            )
