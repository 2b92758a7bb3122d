"""The checkpoints of a run: the best by validation, and the last to resume from."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lightning_kd.tasks import best_of


class _LastInsideEpoch(ModelCheckpoint):
    """Leaves out the step that ends an epoch: resumed from there, a run would not validate."""

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args, **kwargs)


def run_checkpoints(folder: Path, monitor: str, every_n_steps: int) -> list[ModelCheckpoint]:
    """Callbacks that keep ``best.ckpt`` and ``last.ckpt`` in ``folder``.

    Args:
        folder: Made when the first is written.
        monitor: The logged value that chooses the best; see `lightning_kd.tasks.best_of`.
        every_n_steps: Optimizer steps between two writings of the last; the end of each epoch is
            another.
    """
    last: dict[str, Any] = {"dirpath": folder, "filename": "last", "enable_version_counter": False}
    # After an epoch rather than after validation, which may come inside an accumulation window.
    return [
        ModelCheckpoint(
            folder,
            filename="best",
            monitor=monitor,
            mode=best_of(monitor),
            enable_version_counter=False,
        ),
        _LastInsideEpoch(every_n_train_steps=every_n_steps, **last),
        ModelCheckpoint(save_on_train_epoch_end=True, **last),
    ]


__all__ = ["run_checkpoints"]
