"""Schedules of particular papers, for replaying them; the general ones are in `schedules`.

Epochs in the papers' formulas count from 1, :math:`i = epoch + 1`.
"""

import dataclasses
import math
from dataclasses import dataclass

from lightning_kd.progress import Progress
from lightning_kd.schedules import Schedule

__all__ = ["AlgorithmOne", "LinearPsi", "ReleasedStairs", "ScaledPsi", "StepPsi", "WhileBelowOne"]


@dataclass(frozen=True)
class ReleasedStairs(Schedule):
    r"""Temperature of Annealing-KD's released code: :math:`T_{max} - \lfloor e / q \rfloor`.

    :math:`q = \lfloor n / T_{max} \rfloor` epochs per stair. Where :math:`T_{max}` divides the
    number n of epochs this is ``StepDown(T_max, 1, every_epochs=None)``; elsewhere it overshoots to
    temperatures below 1, which multiply the teacher's logits by more than 1.

    Args:
        start: :math:`T_{max}`, at least 1; the training must have as many epochs.

    >>> released = ReleasedStairs(7)
    >>> [int(released(Progress(0, None, epoch, max_epochs=14))) for epoch in range(14)]
    [7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1]
    >>> ReleasedStairs(10)(Progress(0, None, epoch=24, max_epochs=25))
    -2.0
    """

    start: int

    def __post_init__(self) -> None:
        _require_at_least_one(self, start=self.start)

    def __call__(self, progress: Progress) -> float:
        """Temperature in ``progress.epoch``."""
        return float(self.start - progress.epoch // _stair_length(self, progress, self.start))


@dataclass(frozen=True)
class AlgorithmOne(Schedule):
    r"""Temperature of Continuation-KD's Algorithm 1: :math:`T_{max} - \lfloor i / k \rfloor`.

    :math:`k = \lfloor n / T_{max} \rfloor`. The first stair has one epoch less than the others, and
    the printed rule reaches 0 in the end; here it stops at 1.

    Args:
        start: :math:`T_{max}`, at least 1; the training must have as many epochs.

    >>> printed = AlgorithmOne(4)
    >>> [int(printed(Progress(0, None, epoch, max_epochs=9))) for epoch in range(9)]
    [4, 3, 3, 2, 2, 1, 1, 1, 1]
    """

    start: int

    def __post_init__(self) -> None:
        _require_at_least_one(self, start=self.start)

    def __call__(self, progress: Progress) -> float:
        """Temperature in ``progress.epoch``."""
        stairs = (progress.epoch + 1) // _stair_length(self, progress, self.start)
        return float(max(1, self.start - stairs))


@dataclass(frozen=True)
class LinearPsi(Schedule):
    r"""Weight of the labels in Continuation-KD: :math:`i / epochs` up to epoch ``until``, then 1.

    Eq. 7 (CIFAR) is ``LinearPsi(150)``; Eq. 8 (GLUE) is ``LinearPsi(40, until=20)``, which jumps
    from one half to 1. Epochs are absolute: in a training of another length the same numbers are
    another schedule; `ScaledPsi` is the one that scales.

    Args:
        epochs: Denominator, at least 1.
        until: Last epoch of the straight line, from 0 to ``epochs``; None is ``epochs``. 0 is 1
            throughout: fine-tuning.

    >>> glue = LinearPsi(40, until=20)
    >>> [glue(Progress(0, None, i - 1, max_epochs=30)) for i in (1, 10, 20, 21)]
    [0.025, 0.25, 0.5, 1.0]
    """

    epochs: int
    until: int | None = None

    def __post_init__(self) -> None:
        _require_at_least_one(self, epochs=self.epochs)
        if self.until is not None and not 0 <= self.until <= self.epochs:
            raise ValueError(
                f"LinearPsi: until must be from 0 to epochs={self.epochs}, got {self.until}"
            )

    def __call__(self, progress: Progress) -> float:
        """Weight in ``progress.epoch``."""
        i = progress.epoch + 1
        return i / self.epochs if i <= (self.epochs if self.until is None else self.until) else 1.0


@dataclass(frozen=True)
class ScaledPsi(Schedule):
    r"""A weight that rises to 1 with the epochs of a training of any length, then stays. Ours.

    :math:`\min(1, (e + 1/2) / (until \cdot n))` in epoch e of n: a line from 0 to 1, as it is in
    the middle of the epoch. The default has the shape of Continuation-KD's CIFAR runs. Constant in
    an epoch, so that it does not matter how many batches make an optimizer step.

    Args:
        until: Share of the epochs in which it rises, in (0, 1].

    >>> [round(ScaledPsi()(Progress(0, None, epoch, max_epochs=4)), 3) for epoch in range(4)]
    [0.167, 0.5, 0.833, 1.0]
    """

    until: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(f"ScaledPsi: until must be in (0, 1], got {self.until}")

    def __call__(self, progress: Progress) -> float:
        """Weight in ``progress.epoch``."""
        if progress.max_epochs is None:
            raise ValueError("ScaledPsi needs the length of the training; set trainer.max_epochs")
        return min(1.0, (progress.epoch + 0.5) / (self.until * progress.max_epochs))


@dataclass(frozen=True)
class StepPsi(Schedule):
    """0 for some epochs, then 1: the teacher alone, then the labels alone, as in Annealing-KD.

    Source: Continuation-KD, Eq. 6.

    Args:
        epochs: Length of the first part, at least 0; 0 is fine-tuning.

    >>> [StepPsi(2)(Progress(0, None, epoch, max_epochs=4)) for epoch in range(4)]
    [0.0, 0.0, 1.0, 1.0]
    """

    epochs: int

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"StepPsi: epochs must be at least 0, got {self.epochs}")

    def __call__(self, progress: Progress) -> float:
        """Weight in ``progress.epoch``."""
        return float(progress.epoch >= self.epochs)


@dataclass(frozen=True)
class WhileBelowOne(Schedule):
    """A schedule compressed into the epochs in which another one is still below 1.

    Continuation-KD anneals its temperature over all epochs, of which the last ones no longer ask
    the teacher: with the paper's settings the student never sees an unsmoothed teacher. Compressed,
    the temperature arrives at 1 before the labels take over.

    Args:
        schedule: The one to compress, a function of epochs.
        other: The one that ends it: never below 1 again once it is 1.

    >>> from lightning_kd.schedules import StepDown
    >>> compressed = WhileBelowOne(StepDown(2, 1, every_epochs=None), StepPsi(4))
    >>> [compressed(Progress(0, None, epoch, max_epochs=6)) for epoch in range(6)]
    [2.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    """

    schedule: Schedule
    other: Schedule

    def __call__(self, progress: Progress) -> float:
        """Value of ``schedule``; after its last epoch that epoch's."""
        epochs = epochs_below_one(self.other, progress)
        if epochs == 0:  # it never counts, and has no stairs to divide nothing into
            return self.schedule(progress)
        inside = min(progress.epoch, epochs - 1)
        return self.schedule(dataclasses.replace(progress, epoch=inside, max_epochs=epochs))


def epochs_below_one(schedule: Schedule, progress: Progress) -> int:
    """How many epochs of the training begin with a value below 1.

    Raises:
        ValueError: The training has no known number of epochs.

    >>> epochs_below_one(LinearPsi(150), Progress(0, None, epoch=0, max_epochs=200))
    149
    """
    return sum(schedule(start) < 1 for start in epoch_starts(progress))


def epoch_starts(progress: Progress) -> list[Progress]:
    """The first moment of each epoch of the training.

    Raises:
        ValueError: The training has no known number of epochs.
    """
    epochs = progress.max_epochs
    if epochs is None:
        raise ValueError(
            "annealing over epochs needs the length of the training; set trainer.max_epochs"
        )
    steps = progress.max_steps
    length = None if steps is None else math.ceil(steps / max(epochs, 1))
    return [Progress(length * e if length else 0, steps, e, epochs) for e in range(epochs)]


def _stair_length(schedule: Schedule, progress: Progress, stairs: int) -> int:
    epochs = progress.max_epochs
    if epochs is None or epochs < stairs:
        raise ValueError(
            f"{type(schedule).__name__} divides the epochs into {stairs} stairs and needs at least "
            f"as many, got {epochs}; train longer or lower the temperature it starts from"
        )
    return epochs // stairs


def _require_at_least_one(schedule: Schedule, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{type(schedule).__name__}: {name} must be at least 1, got {value}")
