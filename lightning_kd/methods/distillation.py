"""What every method with a teacher stands on: a frozen teacher that costs nothing where it can."""

from abc import ABC
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import nn
from typing_extensions import override

from lightning_kd.fingerprints import fingerprint_of
from lightning_kd.frozen import Frozen
from lightning_kd.methods.base import Batch, TaskModule
from lightning_kd.tasks import CausalLM, Prediction, Task
from lightning_kd.teacher_cache import TeacherCache, open_cache
from lightning_kd.teachers import check_embeddings, check_labels, check_vocabulary, load_teacher


class DistillationModule(TaskModule, ABC):
    """A student that learns from a frozen teacher.

    The teacher is in no optimizer, DDP bucket, checkpoint or export, and never in train mode. Given
    by name, it is loaded when a training starts: evaluation does not need it.

    Args:
        student: See `TaskModule`.
        task: See `TaskModule`.
        teacher: A Hub name or local folder of a model that was fine-tuned on the task, a checkpoint
            of this library (``.ckpt``), or a module.
        teacher_bits: Load the teacher's matrices in 4 (NF4) or 8 bits; needs the ``quant`` extra.
        teacher_cache: Folder to keep the teacher's answers in, so that each example is asked once,
            by any number of runs; ``run`` is a folder in the run's own. None asks for every batch.
            In fp32 the answers are those of a live teacher, bit for bit; where a text is padded to
            another length in a later epoch, a live one differs from itself in the last bit.
        kwargs: See `TaskModule`.

    Raises:
        ValueError: The teacher was made for other labels or tokens, or has no head for the task;
            ``teacher_bits`` for a module.
    """

    def __init__(
        self,
        student: str | nn.Module,
        task: str | Task,
        teacher: str | nn.Module,
        teacher_bits: Literal[4, 8] | None = None,
        teacher_cache: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, task, **kwargs)
        self.teacher_bits = teacher_bits
        self.teacher: Frozen | None = None
        self._fingerprint: str | None = None
        if isinstance(teacher, nn.Module):
            if teacher_bits is not None:
                raise ValueError(
                    f"teacher_bits={teacher_bits} quantizes a teacher while it is read; give its "
                    "name instead of a module, or leave teacher_bits out"
                )
            self.teacher_name, self.teacher = type(teacher).__name__, Frozen(teacher)
            if hasattr(getattr(teacher, "config", None), "id2label"):  # of transformers
                check_labels(self.teacher_name, teacher.config, self.task)
        else:
            self.teach_with(teacher)
        if teacher_cache is not None and isinstance(self.task, CausalLM):
            raise ValueError(
                f"teacher_cache={teacher_cache} would keep a vocabulary of logits for each token; "
                "leave it out: the teacher is then asked for every batch"
            )
        self.teacher_cache = teacher_cache
        self.cache: TeacherCache | None = None

    @property
    def asks_teacher(self) -> bool:
        """Whether a training asks the teacher; one that nobody asks is not loaded."""
        return True

    @property
    def trains_teacher(self) -> bool:
        """Whether ``teacher.epochs`` has something to train."""
        return self.asks_teacher

    @property
    def copies_student(self) -> bool:
        """Whether the teacher is to be the student itself, fine-tuned before."""
        return False

    def check_length(self, max_epochs: int) -> None:
        """Raise `ValueError` for a number of epochs that cannot be, before a teacher is trained."""

    def teach(self, batch: Batch) -> Prediction:
        """The teacher's answer to a batch, without a graph; from the cache where it is there."""
        if self.cache is not None and (found := self.cache.find(batch)) is not None:
            return Prediction(found.to(batch["labels"].device))
        if self.teacher is None:
            raise RuntimeError(
                f"the teacher {self.teacher_name} is loaded when a training starts; call "
                "load_teacher() to ask it before"
            )
        with torch.no_grad():
            prediction = self.task.predict(self.teacher, batch)
        # Asking a GPU for the value waits for it, which keeping the answers does anyway.
        if self.cache is not None or prediction.logits.device.type == "cpu":
            self._check_answers(prediction)
        if self.cache is not None:
            self.cache.keep(batch, prediction.logits)
        return prediction

    def _check_answers(self, prediction: Prediction) -> None:
        if not torch.isfinite(prediction.logits).all():
            raise FloatingPointError(
                f"the teacher {self.teacher_name} gave answers that are not finite; give a teacher "
                "that is intact, or a wider precision"
            )

    def teach_with(self, name: str) -> None:
        """Take the teacher of this name from the next training on."""
        self.teacher_name, self.teacher = name, None
        self.hparams["teacher"] = name

    def watch_teacher(self, folder: Path, epochs: int) -> list[L.Callback]:
        """Callbacks for the training of this student's teacher, of so many epochs in ``folder``."""
        del folder, epochs  # a method may want more of a teacher than its last weights
        return []

    def learn_from_trained(self, folder: Path) -> None:
        """Take the teacher whose training in ``folder`` has ended."""
        self.teach_with(str(folder / "export" / "model"))

    def load_teacher(self) -> None:
        """Load the teacher that was given by name, unless it is there."""
        if self.teacher is None:
            self.teacher = Frozen(load_teacher(self.teacher_name, self.task, self.teacher_bits))
            self._fingerprint = None

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit" or not self.asks_teacher:
            return
        tokenizer = getattr(vars(self.trainer).get("datamodule"), "tokenizer", None)
        if self.teacher is None and self.teacher_name and tokenizer is not None:
            check_vocabulary(self.teacher_name, tokenizer)
        self.load_teacher()
        if self.teacher is not None and tokenizer is not None:
            check_embeddings(self.teacher.module, self.teacher_name, tokenizer)
        self.find_cache()

    def find_cache(self, part: str = "") -> None:
        """Take the answers of the teacher as it is, in the folder ``part`` of ``teacher_cache``."""
        if self.teacher_cache is None or self.teacher is None:
            return
        root = Path(self.trainer.default_root_dir)
        folder = root / "teacher_cache" if self.teacher_cache == "run" else Path(self.teacher_cache)
        # Of a named teacher once: bitsandbytes packs 4-bit weights anew when they are used.
        if self._fingerprint is None or "teacher" not in self.hparams:
            self._fingerprint = fingerprint_of(self.teacher.module)
        ragged = self.task.ragged
        self.cache = open_cache(folder / part, self._fingerprint, self.trainer, ragged=ragged)


__all__ = ["DistillationModule"]
