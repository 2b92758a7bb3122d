"""One training of `distillation_evidence.py`; the best epoch and the last are kept apart."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_kd.callbacks import StudentAveraging
from lightning_kd.methods import TaskModule
from lightning_kd.phases import Phase, fit_phases


@dataclass(frozen=True)
class Trained:
    """What a training leaves beside its module.

    Attributes:
        validation: Of the best epoch.
        last: Checkpoint of the last epoch.
        states: What there is in it: the ``last`` weights, and the ``raw`` ones where these are an
            average.
    """

    validation: float
    last: Path
    states: tuple[str, ...]


def fit(
    module: TaskModule,
    data: L.LightningDataModule,
    epochs: int,
    folder: Path,
    precision: Any,
    callbacks: Sequence[L.Callback] = (),
) -> Trained:
    """Train in all phases; the module then has the weights of its best epoch.

    Args:
        module: A method; its phases have to come to the epochs.
        data: Validated on after every epoch.
        epochs: In all.
        folder: Gets the checkpoints.
        precision: Lightning's.
        callbacks: Beside those that keep checkpoints.

    Raises:
        ValueError: The phases are longer or shorter.
    """
    phases = module.phases or (Phase("all", epochs),)
    if (given := sum(phase.max_epochs for phase in phases)) != epochs:
        raise ValueError(f"{type(module).__name__} has {given} epochs, the others {epochs}")
    best = folder / "checkpoints" / "best.ckpt"
    keepers: list[ModelCheckpoint] = []

    def trainer_for(phase: Phase, checkpoints: Path) -> L.Trainer:
        kept: Any = {"dirpath": checkpoints, "save_weights_only": not callbacks}
        kept["enable_version_counter"] = False
        made = [
            ModelCheckpoint(filename="best", monitor=module.monitor, mode="max", **kept),
            ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **kept),
        ]
        keepers.extend(made)
        settings = {"callbacks": [*callbacks, *made], "default_root_dir": folder}
        return quiet_trainer(phase.max_epochs, precision, **settings)

    if module.phases:
        fit_phases(module, data, folder, trainer_for)
    else:
        trainer_for(phases[0], best.parent).fit(module, datamodule=data)
    load(module, best)
    scores = [keeper.best_model_score for keeper in keepers if keeper.monitor]
    last = Path(str(keepers[-1].dirpath)) / "last.ckpt"
    averaged = any(isinstance(callback, StudentAveraging) for callback in callbacks)
    states = ("last", "raw") if averaged else ("last",)
    return Trained(max(float(score) for score in scores if score is not None), last, states)


def quiet_trainer(max_epochs: int, precision: Any, **more: Any) -> L.Trainer:
    """One that says nothing and validates after every epoch."""
    off: Any = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"), False
    )
    given = {"max_epochs": max_epochs, "precision": precision, **off, **more}
    return L.Trainer(accelerator="cpu", devices=1, **given)


def load(module: TaskModule, checkpoint: Path, *, raw: bool = False) -> None:
    """Give the module the weights of a checkpoint, or those that were averaged there, as they were.

    Raises:
        KeyError: ``raw``, and nothing was averaged.
    """
    found = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights = found["state_dict"]
    if raw:
        weights |= found["student_averaging"]["student"]["other"]
    module.load_state_dict(weights)


def versions() -> dict[str, str]:
    """Of what the figures may depend on."""
    names = ("torch", "lightning", "transformers", "lightning-kd")
    return {name: importlib.metadata.version(name) for name in names}
