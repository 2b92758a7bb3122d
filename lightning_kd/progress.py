"""Where a training run stands: the one quantity that everything time-varying is a function of.

Lightning has several counters. ``trainer.global_step`` counts the steps of every optimizer, so it
runs at another speed under gradient accumulation or with two optimizers; the unit here is the
*training batch*. All counters come from Lightning's loops, which restore them from a checkpoint.
"""

import hashlib
import math
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

__all__ = ["Progress", "check_whole_step", "logs_now", "seed_dropout", "show"]


@dataclass(frozen=True)
class Progress:
    """Position in a training run, counted in training batches of one process.

    Args:
        step: Batches trained before the present one: 0 during the first batch.
        max_steps: Batches of the whole run; None where nobody can know.
        epoch: Epochs finished: 0 during the first.
        max_epochs: Epochs of the whole run, the last one perhaps incomplete; None if unknown.

    >>> Progress(step=30, max_steps=40, epoch=1, max_epochs=2).fraction
    0.75
    """

    step: int
    max_steps: int | None
    epoch: int
    max_epochs: int | None

    @property
    def fraction(self) -> float:
        """``step / max_steps``: 0 during the first batch, 1 when the last one is done.

        Raises:
            ValueError: The training has no known end.
        """
        if self.max_steps is None:
            raise ValueError(
                "this training has no known end, so it has no fraction; set trainer.max_epochs "
                "(trainer.max_steps counts optimizer steps, which cannot be converted to batches "
                "under manual optimization or a GradientAccumulationScheduler)"
            )
        return min(self.step / self.max_steps, 1.0) if self.max_steps else 1.0

    @classmethod
    def of(cls, trainer: L.Trainer) -> "Progress":
        """Read the position from a trainer that fits, from ``on_train_start`` on.

        In ``on_train_batch_start`` and ``training_step`` this is the position of the present
        batch; in ``on_train_batch_end`` and in validation it is already that of the next one.
        """
        # `processed` is right in every hook and after every kind of checkpoint: `ready` counts a
        # batch that was cut off, `completed` misses the batch whose end wrote the checkpoint.
        total = trainer.fit_loop.epoch_loop.batch_progress.total
        max_steps = _total_batches(trainer)
        return cls(
            step=int(vars(total)["processed"]),
            max_steps=max_steps,
            epoch=trainer.current_epoch,
            max_epochs=_total_epochs(trainer, max_steps),
        )


def logs_now(trainer: L.Trainer) -> bool:
    """Whether the loggers write the present step; what others log is overwritten unseen.

    A ``log`` call takes a good part of a millisecond, as much as all the rest of Lightning's loop.
    """
    every: int = vars(trainer)["log_every_n_steps"]  # Lightning does not declare it
    return every > 0 and (trainer.global_step + 1) % every == 0


def show(trainer: L.Trainer, name: str, value: float) -> None:
    """Put a number into the progress bar; cheap enough for every step, as ``log`` is not."""
    trainer.progress_bar_metrics[name] = value


def seed_dropout(key: str, device: torch.device) -> None:
    """Seed what a step draws on ``device`` with a hash of ``key``."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    # torch.manual_seed seeds every kind of device, which takes a third of a millisecond.
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def check_whole_step(trainer: L.Trainer) -> None:
    """Refuse to average over tokens where nobody counted those of the whole optimizer step.

    Raises:
        ValueError: The step has several micro-batches or processes.
    """
    parts = trainer.accumulate_grad_batches * trainer.world_size
    if parts > 1:
        raise ValueError(
            f"an optimizer step has {parts} micro-batches, whose numbers of target tokens are not "
            "known in advance; use a data module of this library, or put num_targets (their mean "
            "over the step) into each batch"
        )


def _total_batches(trainer: L.Trainer) -> int | None:
    """Batches until ``max_epochs`` or ``max_steps`` ends the training, whichever comes first."""
    limits: list[float] = []
    max_epochs = _max_epochs(trainer)
    if max_epochs is not None:
        limits.append(max_epochs * trainer.num_training_batches if max_epochs else 0)
    if trainer.max_steps >= 0:
        batches = _batches_of_steps(trainer, trainer.max_steps)
        if batches is None:
            return None
        limits.append(batches)
    end = min(limits, default=math.inf)
    return int(end) if math.isfinite(end) else None


def _batches_of_steps(trainer: L.Trainer, steps: int) -> int | None:
    """Batches behind so many optimizer steps; the last step of an epoch may have fewer of them."""
    callbacks = vars(trainer)["callbacks"]  # Lightning does not declare it
    changes = any(isinstance(c, GradientAccumulationScheduler) for c in callbacks)
    if changes or not trainer.lightning_module.automatic_optimization:
        return None
    per_step = trainer.accumulate_grad_batches
    if math.isinf(trainer.num_training_batches):  # iterable dataset: an epoch has no known length
        return steps * per_step
    per_epoch = int(trainer.num_training_batches)
    epochs, rest = divmod(steps, math.ceil(per_epoch / per_step))
    return epochs * per_epoch + rest * per_step


def _total_epochs(trainer: L.Trainer, max_steps: int | None) -> int | None:
    if max_steps is None or math.isinf(trainer.num_training_batches):
        return _max_epochs(trainer)
    return math.ceil(max_steps / trainer.num_training_batches) if max_steps else 0


def _max_epochs(trainer: L.Trainer) -> int | None:
    """Lightning writes "no limit" as -1."""
    given = trainer.max_epochs
    return given if given is not None and given >= 0 else None
