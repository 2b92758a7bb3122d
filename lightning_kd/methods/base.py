"""What every method stands on: a training step, validation at every size, clean checkpoints."""

import operator
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_kd.evaluation import AnswerKey, Evaluation, HasAnswerKeys, Stage
from lightning_kd.export import atomic_directory
from lightning_kd.models import make_student, quiet
from lightning_kd.nested import Nested
from lightning_kd.optim import can_fuse, check_schedule, decay_groups, lr_scheduler, mark_matrices
from lightning_kd.paper import Paper
from lightning_kd.phases import Phase
from lightning_kd.progress import Progress, check_whole_step, logs_now, seed_dropout, show
from lightning_kd.tasks import Prediction, Task, task_named

Batch = dict[str, Tensor]
LRSchedule = Literal["linear", "cosine", "constant", "steps"]


class TaskModule(L.LightningModule, ABC):
    """A student learning a task: everything but the objective.

    A method overrides `objective`; its terms are summed, logged as ``train/<term>`` and
    minimized with AdamW (vectors do not decay), warm-up and a schedule.

    Args:
        student: Hub name, local Hugging Face folder, transformers config, or a module.
        task: A benchmark's name for it (``sst2``), or a `lightning_kd.tasks.Task`.
        learning_rate: Peak; never scaled by batch size or processes.
        weight_decay: Of matrices.
        warmup_fraction: Share of the optimizer steps spent warming up; 0 starts at the peak.
        lr_schedule: ``linear`` and ``cosine`` decay to 0 at the last step, ``constant`` stays,
            ``steps`` falls to a tenth after half of the steps and again after three quarters.
        optimizer: Makes another optimizer from the trainable parameters; it then decides the
            learning rate and the decay.
        student_layers: Of the student's layers keep so many first ones, or those of these numbers
            (``[0, 2, 4]``); None keeps all.
        student_init: ``random`` takes the student's architecture without its weights.

    Raises:
        ValueError: Unknown task or schedule, a fraction outside [0, 1], or layers it has not.
    """

    paper: ClassVar[Paper]

    def __init__(  # noqa: PLR0913, PLR0917 (what every method has)
        self,
        student: str | nn.Module,
        task: str | Task,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.06,
        lr_schedule: LRSchedule = "linear",
        optimizer: OptimizerCallable | None = None,
        student_layers: int | list[int] | None = None,
        student_init: Literal["pretrained", "random"] = "pretrained",
    ) -> None:
        super().__init__()
        check_schedule(lr_schedule, warmup_fraction)
        self.task = task_named(task) if isinstance(task, str) else task
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_fraction, self.lr_schedule = warmup_fraction, lr_schedule
        self.optimizer_factory = optimizer
        self.student = make_student(student, self.task, student_layers, student_init)
        self.evaluations: dict[tuple[str, int | None], Evaluation] = {}
        self.phase = ""
        self.notes: dict[str, Any] = {}  # what a report has to say of the training, by name
        self._last_terms: dict[str, Tensor] = {}
        self._dropout_seed = 0
        # Objects do not belong into a file that is loaded with weights_only=True.
        given = {"student": student, "task": task, "optimizer": optimizer}
        ignored = [name for name, value in given.items() if not isinstance(value, str)]
        # Nor does the folder an adapter started from: its weights are in the file, it may be gone.
        # A teacher is kept by name only, by `DistillationModule`.
        self.save_hyperparameters(ignore=[*ignored, "adapter", "teacher"], logger=False)

    @property
    def phases(self) -> Sequence[Phase]:
        """What `lightning_kd.phases.fit_phases` fits; none: one fit of the trainer's length."""
        return ()

    def begin_phase(self, phase: Phase) -> None:
        """Called before the fit of each phase, also of one that is resumed or done."""
        self.phase = phase.name

    @abstractmethod
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms whose sum is minimized."""

    def predict(self, batch: Batch, hidden_states: bool = False) -> Prediction:
        """The student's answer to a batch."""
        return self.task.predict(self.student, batch, hidden_states)

    def predictions(self, batch: Batch) -> Iterator[tuple[int | None, Prediction, float]]:
        """``(size, prediction, seconds)`` for every size that is to be evaluated."""
        if not isinstance(self, Nested):
            start = time.perf_counter()
            yield None, self.predict(batch), time.perf_counter() - start
            return
        for size in self.evaluation_sizes:
            with self.at_size(size):
                start = time.perf_counter()
                yield size, self.predict(batch), time.perf_counter() - start

    def hard_term(self, batch: Batch) -> Tensor:
        """The task's loss of the student against the labels, averaged."""
        return self.task.reduce(self.task.hard_loss(self.predict(batch), batch), batch)

    @property
    def monitor(self) -> str:
        """The logged value that chooses the best checkpoint: a mean over ``selection_sizes``."""
        return self._key("val", "", "mean" if isinstance(self, Nested) else None, self.task.monitor)

    def num_trainable_parameters(self, size: int | None = None) -> int:
        """Weights that training may change, at ``size`` when there are sizes."""
        del size  # a nested method counts the active part
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    # Training

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit":
            # Hugging Face models arrive in eval mode and Lightning leaves them there.
            self.student.train()
            mark_matrices(self)
            self._dropout_seed = torch.initial_seed()  # the run's own, or else the checkpoint's

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout is a function of (seed, phase, batch, process), so that a resumed run repeats it.
        step = Progress.of(self.trainer).step
        seed_dropout(f"{self._dropout_seed}/{self.phase}/{step}/{self.global_rank}", self.device)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.task.weighs_examples and "num_targets" not in batch:
            check_whole_step(self.trainer)
        terms = self.objective(batch)
        self._last_terms = {name: term.detach() for name, term in terms.items()}
        loss = reduce(operator.add, terms.values())
        logs = logs_now(self.trainer)
        # Asking a GPU for the value waits for it: there that happens when values are logged.
        if logs or loss.device.type == "cpu":
            self._check_finite()
            show(self.trainer, "loss", loss.item())
        if logs:
            size = batch["labels"].shape[0]
            self.log_dict({f"train/{k}": v for k, v in self._last_terms.items()}, batch_size=size)
        return loss * self._cut_window(batch_idx)

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if logs_now(self.trainer):
            if grads := [p.grad for p in self.parameters() if p.grad is not None]:  # not ZeRO's
                self.log("train/grad_norm", torch.nn.utils.get_total_norm(grads))
            self.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.optimizer_factory is not None:
            optimizer = self.optimizer_factory([p for p in self.parameters() if p.requires_grad])
        else:
            optimizer = self.make_optimizer()
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "this training has no known end, which warm-up and the learning rate's decay need; "
                "set trainer.max_epochs or trainer.max_steps (trainer.max_time may stop it earlier)"
            )
        scheduler = lr_scheduler(optimizer, self.lr_schedule, self.warmup_fraction, int(steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def make_optimizer(self) -> Optimizer:
        """AdamW over the trainable parameters, vectors without decay."""
        groups = decay_groups(self.named_parameters(), self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.learning_rate, fused=can_fuse(self))

    def _cut_window(self, batch_idx: int) -> float:
        """Makes up for Lightning's dividing by a whole window where the epoch ends inside it."""
        window = self.trainer.accumulate_grad_batches
        left = self.trainer.num_training_batches - batch_idx // window * window
        return window / min(window, left)

    def _check_finite(self) -> None:
        for name, term in self._last_terms.items():
            if not torch.isfinite(term):
                self._stop(f"the term {name} became {term.item()}")

    def _stop(self, what: str) -> NoReturn:
        raise FloatingPointError(
            f"{what} at step {self.trainer.global_step}; the last checkpoint is kept: resume from "
            "it with a lower learning rate, gradient clipping or a wider precision"
        )

    # Evaluation

    @override
    def on_validation_start(self) -> None:
        self.evaluations = {}

    on_test_start = on_validation_start

    @override
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "validate", dataloader_idx)

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "test", dataloader_idx)

    @override
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        key, prediction = self._answer_key("predict", dataloader_idx), self.predict(batch)
        answers = (key.record if key is not None else self.task.answers)(prediction, batch)
        return {"idx": batch["idx"], "answers": answers}

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_evaluations("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._log_evaluations("test")

    def _evaluate(self, batch: Batch, stage: Stage, dataloader_idx: int) -> None:
        eval_set = self.task.eval_sets[dataloader_idx]
        for size, prediction, seconds in self.predictions(batch):
            if (eval_set, size) not in self.evaluations:
                key = self._answer_key(stage, dataloader_idx)
                self.evaluations[eval_set, size] = Evaluation(self.task, key).to(self.device)
            self.evaluations[eval_set, size].update(prediction, batch, seconds)

    def _answer_key(self, stage: Stage, dataloader_idx: int) -> AnswerKey | None:
        data = None if self._trainer is None else vars(self._trainer).get("datamodule")
        return data.answer_key(stage, dataloader_idx) if isinstance(data, HasAnswerKeys) else None

    def _log_evaluations(self, stage: str) -> None:
        sums: dict[str, list[float]] = {}
        for (eval_set, size), evaluation in self.evaluations.items():
            for name, value in evaluation.compute().items():
                part = f"{self.size_name}_{size}" if isinstance(self, Nested) else None
                self.log(self._key(stage, eval_set, part, name), value, sync_dist=False)
                if isinstance(self, Nested) and size in self.selection_sizes:
                    sums.setdefault(self._key(stage, eval_set, "mean", name), []).append(value)
        for key, values in sums.items():
            self.log(key, sum(values) / len(values), prog_bar=key == self.monitor)

    @staticmethod
    def _key(*parts: str | None) -> str:
        return "/".join(part for part in parts if part)

    # Checkpoints

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_finite()
        for name, value in checkpoint["state_dict"].items():  # the last step may have spoilt them
            if isinstance(value, Tensor) and not torch.isfinite(value).all():
                self._stop(f"the weight {name} is not finite")
        checkpoint["lightning_kd"] = {"method": type(self).__name__, "task": self.task.name}
        checkpoint["dropout_seed"] = self._dropout_seed

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        written = checkpoint.get("lightning_kd")
        ours = {"method": type(self).__name__, "task": self.task.name}
        if written is None:
            raise ValueError("the checkpoint was not written by lightning-kd; give one that was")
        if written != ours:
            raise ValueError(
                f"the checkpoint is of {written['method']} on {written['task']}, "
                f"this is {ours['method']} on {ours['task']}; use the recipe that wrote it"
            )
        self._dropout_seed = checkpoint.get("dropout_seed", self._dropout_seed)

    def export(self, directory: Path, size: int | None = None) -> None:
        """Write the student as a Hugging Face folder (weights as safetensors)."""
        del size  # a plain model has one
        with atomic_directory(directory) as folder, quiet():
            self.student.save_pretrained(folder)  # type: ignore[operator]


__all__ = ["Batch", "LRSchedule", "TaskModule"]
