"""A teacher for a distillation run: the named model, fine-tuned on the task in the run's folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.optim import Optimizer

from lightning_kd.data import BenchmarkDataModule, TextDataModule
from lightning_kd.methods import DistillationModule, FineTuning, TaskModule
from lightning_kd.outcome import Outcome
from lightning_kd.teachers import check_vocabulary

__all__ = ["TeacherTraining", "train_teacher"]


@dataclass(frozen=True)
class TeacherTraining:
    """Whether a run trains its teacher first.

    Args:
        epochs: Of fine-tuning model.teacher on the task; 0 takes it as it is.
        learning_rate: Of that fine-tuning, at its peak, whatever the optimizer.
    """

    epochs: int = 0
    learning_rate: float = 2e-5


def train_teacher(
    student: DistillationModule,
    datamodule: BenchmarkDataModule,
    folder: Path,
    trainer_for: Callable[[TaskModule], L.Trainer],
    learning_rate: float,
    seed: int,
) -> None:
    """Fine-tune the student's teacher, report and export it; goes on where it was cut off.

    Args:
        student: Its task, optimizer, warm-up and schedule are the teacher's too; it is given the
            export.
        datamodule: The student's.
        folder: Gets ``checkpoints/``, ``report/`` and ``export/model/``.
        trainer_for: Makes the trainer, with checkpoints in ``folder``.
        learning_rate: Peak, of all weights.
        seed: The run's, for the record.

    Raises:
        ValueError: The method runs without a teacher, the teacher reads other tokens, or it is
            another network than the student's where it is to be a copy of it.
    """
    if not student.teacher_name:
        raise ValueError("teacher.epochs trains model.teacher, which this run has not; leave it 0")
    if (folder / "report" / "summary.json").exists():  # written when the export is whole
        student.learn_from_trained(folder)
        return
    # Fine-tuned on the student's tokens it would be exported with them, and pass later checks.
    if isinstance(datamodule, TextDataModule):
        check_vocabulary(student.teacher_name, datamodule.tokenizer)
    settings: dict[str, Any] = {
        "learning_rate": learning_rate,
        "weight_decay": student.weight_decay,
        "warmup_fraction": student.warmup_fraction,
        "lr_schedule": student.lr_schedule,
        "optimizer": _at(student.optimizer_factory, learning_rate),
    }
    if student.copies_student:
        settings |= _student_settings(student)
    task = student.hparams.get("task", student.task)  # by name, its checkpoint loads anywhere
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the head that a run of fine-tuning with this seed begins with
        module = FineTuning(student.teacher_name, task, **settings)
    trainer = trainer_for(module)
    watchers = student.watch_teacher(folder, trainer.max_epochs or 0)
    vars(trainer)["callbacks"][:0] = watchers  # what writes checkpoints comes last
    if trainer.is_global_zero:
        print(f"first the teacher: {student.teacher_name}, {trainer.max_epochs} epoch(s)")  # noqa: T201
    start, last = perf_counter(), folder / "checkpoints" / "last.ckpt"
    trainer.fit(module, datamodule=datamodule, ckpt_path=last if last.exists() else None)
    outcome = Outcome(trainer, module, datamodule, folder, seed)
    outcome.evaluate("validate", str(folder / "checkpoints" / "best.ckpt"))
    if datamodule.has_test:
        outcome.evaluate("test")
    outcome.finish(perf_counter() - start, [], None, export=True)
    trainer.strategy.barrier()
    student.learn_from_trained(folder)


def _at(make: OptimizerCallable | None, learning_rate: float) -> OptimizerCallable | None:
    """The same kind of optimizer with another learning rate; None, the default one, stays."""
    if make is None:
        return None

    def made(parameters: Any) -> Optimizer:
        optimizer = make(parameters)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        return optimizer

    return made


def _student_settings(student: DistillationModule) -> dict[str, Any]:
    """What makes the student out of its name."""
    if (own := student.hparams.get("student")) != student.teacher_name:
        raise ValueError(
            "teacher.epochs fine-tunes a copy of the student here, but model.teacher is "
            f"{student.teacher_name} and model.student {own}; give both the same name"
        )
    return {name: student.hparams[name] for name in ("student_layers", "student_init")}
