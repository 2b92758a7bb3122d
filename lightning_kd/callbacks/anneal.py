"""Numbers of any LightningModule that follow the training: temperatures, weights, thresholds."""

import difflib
from typing import Any

import lightning as L

from lightning_kd.progress import Progress
from lightning_kd.schedules import Schedule

__all__ = ["Anneal"]


class Anneal(L.Callback):
    """Sets attributes of the module from schedules, at the start of training and of every batch.

    The module reads a plain float (``self.temperature``), whose initial value it may declare as it
    likes; each value is logged under the attribute's name and shown in the progress bar. There is
    no state: a resumed run evaluates the same functions of the same progress.

    In Python, ``Anneal(temperature=StepDown(10, 1))``; in YAML, where keywords must be known::

        class_path: lightning_kd.callbacks.Anneal
        init_args:
          schedules:
            temperature:
              class_path: lightning_kd.schedules.StepDown
              init_args: {start: 10, end: 1}

    Args:
        schedules: Attribute name to schedule.
        more: The same as keywords.
    """

    def __init__(self, schedules: dict[str, Schedule] | None = None, **more: Schedule) -> None:
        super().__init__()
        schedules = schedules or {}
        twice = sorted(schedules.keys() & more.keys())
        if twice:
            raise ValueError(f"Anneal was given two schedules for {', '.join(twice)}; keep one")
        self.schedules = {**schedules, **more}
        if not self.schedules:
            raise ValueError(
                "Anneal has no schedule; give it one: Anneal(temperature=StepDown(10, 1))"
            )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Refuse names the module does not have, before anything is loaded or trained."""
        for name in self.schedules:
            if not _is_number(getattr(pl_module, name, None)):
                raise ValueError(_unknown(name, pl_module))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the values, for whatever reads them before the first batch."""
        self._set(trainer, pl_module)

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Set the values of this batch and log them."""
        for name, value in self._set(trainer, pl_module).items():
            pl_module.log(name, value, prog_bar=True, on_step=True, on_epoch=False)

    def _set(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        progress = Progress.of(trainer)
        values = {name: schedule(progress) for name, schedule in self.schedules.items()}
        for name, value in values.items():
            setattr(pl_module, name, value)
        return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unknown(name: str, module: L.LightningModule) -> str:
    """Error message with the numbers the module does have, the nearest names first."""
    numbers = sorted(n for n, v in vars(module).items() if _is_number(v) and not n.startswith("_"))
    near = difflib.get_close_matches(name, numbers, n=3) or numbers
    hint = f"its numbers: {', '.join(near)}" if near else "it has no numbers at all"
    return f"Anneal: {type(module).__name__} has no number named {name!r} to set; {hint}"
