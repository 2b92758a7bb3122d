"""Training in phases: one `Trainer.fit` each, the next from the student of the one before.

A run folder's ``lineage.json`` says which phases are done, what each began from and which weights
came out of it. Calling `fit_phases` again on the folder goes on where it was cut off: inside a
phase from its ``last.ckpt``, between two from the record.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_kd.checkpoint_io import remove_left_over, write_atomically
from lightning_kd.tasks import best_of

if TYPE_CHECKING:
    from lightning_kd.methods import TaskModule

__all__ = [
    "FinalSelect",
    "Phase",
    "PhaseRecord",
    "Start",
    "check_epochs",
    "fit_phases",
    "read_lineage",
    "teacher_then_labels",
]

Start = Literal["best", "last"]
"""Of the phase before: the best student by validation, or the last."""

FinalSelect = Literal["best", "phase", "last"]
"""``best`` of all phases by validation, best of the last ``phase``, or the ``last`` weights."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with an objective, an optimizer and a schedule of its own.

    Args:
        name: What the method calls it; also the folder of its checkpoints.
        max_epochs: Its length, at least 1.
        start: The student of the phase before to start from: the best by validation, or the last.

    Raises:
        ValueError: No epoch, or an unknown start.
    """

    name: str
    max_epochs: int
    start: Start = "best"

    def __post_init__(self) -> None:
        if self.max_epochs < 1:
            raise ValueError(f"phase {self.name!r} needs at least one epoch, got {self.max_epochs}")
        if self.start not in ("best", "last"):
            raise ValueError(f"a phase starts from best or last, got {self.start!r}")


@dataclass(frozen=True)
class PhaseRecord:
    """A phase that is done.

    Attributes:
        phase: Its name.
        epochs: Trained.
        parent: SHA-256 of the checkpoint that it started from; None: the model as it was given.
        best, last: Checkpoints, relative to the run folder.
        best_sha256, last_sha256: Of these files.
        monitor, score: What chose the best, and its value.
    """

    phase: str
    epochs: int
    parent: str | None
    best: str
    best_sha256: str
    last: str
    last_sha256: str
    monitor: str
    score: float


def read_lineage(folder: Path) -> list[PhaseRecord]:
    """The phases of a run folder that are done.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / "lineage.json"
    if not path.exists():
        return []
    try:
        return [PhaseRecord(**record) for record in json.loads(path.read_text())["phases"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and --resume the run: the record is made "
            "again from the checkpoints"
        ) from error


def teacher_then_labels(teacher_epochs: int, label_epochs: int, start: Start) -> tuple[Phase, ...]:
    """A phase ``teacher``, and one ``labels`` that begins with its best or last student.

    >>> [phase.name for phase in teacher_then_labels(14, 0, "best")]
    ['teacher']
    """
    teacher = Phase("teacher", teacher_epochs)
    return (teacher, Phase("labels", label_epochs, start)) if label_epochs > 0 else (teacher,)


def check_epochs(phases: Sequence[Phase], max_epochs: int | None) -> None:
    """Raise where a trainer's ``max_epochs`` contradicts the phases; None and -1 leave it to them.

    >>> check_epochs([Phase("teacher", 2), Phase("labels", 1)], 3)
    """
    total = sum(phase.max_epochs for phase in phases)
    if phases and max_epochs not in (None, -1, total):
        parts = " + ".join(f"{phase.max_epochs} ({phase.name})" for phase in phases)
        raise ValueError(
            f"the phases have {parts} = {total} epochs and trainer.max_epochs is {max_epochs}; "
            "set the phases' own epochs and leave trainer.max_epochs out (null)"
        )


def fit_phases(
    module: "TaskModule",
    datamodule: L.LightningDataModule,
    folder: Path,
    trainer_for: Callable[[Phase, Path], L.Trainer],
    final_select: FinalSelect = "best",
) -> tuple[L.Trainer, Path]:
    """Fit every phase that is not done yet; returns the last trainer and the selected checkpoint.

    The checkpoint gets the name ``checkpoints/best.ckpt``. All processes of a run make this call.

    Args:
        module: Its ``phases`` are fitted, in this order.
        datamodule: The data of all phases.
        folder: The run's.
        trainer_for: Makes the trainer of a phase: ``max_epochs`` are the phase's, its checkpoint
            callbacks write ``best.ckpt`` and ``last.ckpt`` into the folder that is given.
        final_select: Which weights are the run's result.

    Raises:
        ValueError: A record or a checkpoint in the folder does not fit, or an unknown selection.
    """
    phases, done = module.phases, read_lineage(folder)
    _check(phases, done, folder, final_select)
    for phase in phases:
        module.begin_phase(phase)
        finished = phase.name in [record.phase for record in done]
        if finished and phase is not phases[-1]:
            continue
        checkpoints = folder / "checkpoints" / phase.name
        trainer = trainer_for(phase, checkpoints)
        last = checkpoints / "last.ckpt"
        if finished:
            if last.exists():  # ends at once, and what is logged from now on is at its last step
                trainer.fit(module, datamodule=datamodule, ckpt_path=last)
            break
        parent = _begin(module, phase, done[-1], folder, last) if done else None
        trainer.fit(module, datamodule=datamodule, ckpt_path=last if last.exists() else None)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return trainer, last  # it writes no checkpoint
        done.append(_record(phase, trainer, checkpoints, folder, parent))
        if trainer.is_global_zero:
            _write(folder, done)
        trainer.strategy.barrier()
    target = folder / "checkpoints" / "best.ckpt"
    if trainer.is_global_zero:
        _put(_select(done, folder, final_select), target)
    trainer.strategy.barrier()
    return trainer, target


def _check(
    phases: Sequence[Phase], done: Sequence[PhaseRecord], folder: Path, final_select: str
) -> None:
    if final_select not in ("best", "phase", "last"):
        raise ValueError(f"final_select must be best, phase or last, got {final_select!r}")
    names = [phase.name for phase in phases]
    if [record.phase for record in done] != names[: len(done)]:
        raise ValueError(
            f"{folder / 'lineage.json'} has the phases {[r.phase for r in done]}, this run has "
            f"{names}; resume with the settings it was started with"
        )


def _begin(
    module: "TaskModule", phase: Phase, before: PhaseRecord, folder: Path, last: Path
) -> str:
    """Give the module the student to start from, unless the phase is to be resumed."""
    name, expected = (
        (before.best, before.best_sha256)
        if phase.start == "best"
        else (before.last, before.last_sha256)
    )
    if not last.exists():
        path = folder / name
        if not path.exists() or _sha256(path) != expected:
            raise ValueError(
                f"{path} is not the checkpoint that phase {before.phase!r} ended with; put it "
                "back, or start the run anew"
            )
        module.load_state_dict(
            torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        )
    return expected


def _record(
    phase: Phase, trainer: L.Trainer, checkpoints: Path, folder: Path, parent: str | None
) -> PhaseRecord:
    best, last = checkpoints / "best.ckpt", checkpoints / "last.ckpt"
    callbacks: list[Any] = vars(trainer)["callbacks"]
    monitored = [c for c in callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    score = monitored[0].best_model_score if monitored else None
    if not best.exists() or score is None:
        raise ValueError(
            f"phase {phase.name!r} was never validated, so it has no best student; let it end an "
            "epoch (trainer.limit_val_batches above 0)"
        )
    return PhaseRecord(
        phase=phase.name,
        epochs=trainer.current_epoch,
        parent=parent,
        best=str(best.relative_to(folder)),
        best_sha256=_sha256(best),
        last=str(last.relative_to(folder)),
        last_sha256=_sha256(last),
        monitor=str(monitored[0].monitor),
        score=float(score),
    )


def _select(done: Sequence[PhaseRecord], folder: Path, final_select: FinalSelect) -> Path:
    if final_select == "last":
        return folder / done[-1].last
    if final_select == "phase":
        return folder / done[-1].best
    # Of equals the later: it has seen what the earlier has, and more.
    sign = -1 if best_of(done[-1].monitor) == "min" else 1
    return folder / max(reversed(done), key=lambda record: sign * record.score).best


def _put(checkpoint: Path, target: Path) -> None:
    """A second name for the file, or a copy where the file system has none."""
    if target.exists() and target.samefile(checkpoint):
        return
    remove_left_over(target)
    scratch = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    scratch.unlink(missing_ok=True)
    try:
        os.link(checkpoint, scratch)
    except OSError:
        shutil.copyfile(checkpoint, scratch)
    scratch.replace(target)


def _write(folder: Path, done: Sequence[PhaseRecord]) -> None:
    text = json.dumps({"phases": [asdict(record) for record in done]}, indent=2)
    write_atomically(lambda file: file.write(text.encode()), folder / "lineage.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
