"""Annealing-KD: first the teacher, small and then growing; then the labels alone.

Jafari, Rezagholizadeh, Sharma and Ghodsi, "Annealing Knowledge Distillation", EACL 2021, arXiv
2104.07163. Stage one minimizes the squared distance of the student's logits to Phi(T) times the
teacher's, Phi(T) = 1 - (T - 1) / T_max, with T falling from T_max to 1: the gap between a large
teacher and a small student opens step by step. Stage two starts from the best student of stage one,
with a new optimizer, and minimizes the task's own loss. No softmax temperature, no weight between
two losses, and the student's logits are never scaled.

What differs from the released code: the temperature is a function of the epoch, so that it never
overshoots (``schedule="official"`` is the released rule, which may) and a resumed run repeats it;
the teacher is asked without a graph and not at all in stage two, where the release runs it; the
best student is chosen after each epoch, not before it, and kept per stage; on STS-B answers and
scores have one shape (there they broadcast to a matrix); of a span only the logits of possible
answers count. What differs from the paper: ``reduction="mean"`` is the release's, the paper's
formula is ``"sum"``. Left out: the Kullback-Leibler divergence in stage one, which the paper tried
and found worse.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import lightning as L
from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.callbacks import Anneal
from lightning_kd.checks import check_choice
from lightning_kd.functional import annealed_logit_mse, smoothing_factor
from lightning_kd.methods.base import Batch
from lightning_kd.methods.distillation import DistillationModule
from lightning_kd.paper import Paper
from lightning_kd.paper_schedules import ReleasedStairs
from lightning_kd.phases import Phase, Start, teacher_then_labels
from lightning_kd.progress import Progress
from lightning_kd.schedules import Constant, Cosine, Linear, Schedule, StepDown
from lightning_kd.tasks import Task

TemperatureSchedule = Literal["stepwise", "official", "linear", "cosine", "constant"]

_SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "stepwise": lambda start: StepDown(start, 1, every_epochs=None),
    "official": ReleasedStairs,
    "linear": lambda start: Linear(start, 1),
    "cosine": lambda start: Cosine(start, 1),
    "constant": lambda _: Constant(1),
}


class AnnealingKD(DistillationModule):
    r"""Regress :math:`\Phi(T) z_t` while T falls to 1, then learn from the labels.

    Args:
        student: See `TaskModule`.
        task: See `TaskModule`.
        teacher: See `DistillationModule`.
        max_temperature: :math:`T_{max}`, the temperature of the first epoch; 1 does not anneal.
        teacher_epochs: Of the phase ``teacher``, at least 1; where the temperature goes in stairs,
            at least ``max_temperature``.
        label_epochs: Of the phase ``labels``; 0 leaves it out.
        schedule: ``stepwise``: whole temperatures that share the epochs evenly (the paper's);
            ``official``: the released rule, equal to it where ``max_temperature`` divides
            ``teacher_epochs``, and past temperature 1 where it does not; ``linear`` and ``cosine``
            fall with every batch; ``constant`` is T = 1 throughout, plain regression of the logits,
            the control that annealing has to beat.
        reduction: Of the squared differences over the classes: ``mean`` (released code) or ``sum``
            (the paper's formula, as many times larger as there are classes).
        center_logits: Compare logits without their mean over the classes, which no softmax sees.
        best_from: Where the labels start: from the best student of the whole of ``stage1``, or from
            the last, which was trained at the ``final_temperature``. Accuracy does not see the
            logits' scale, so the best may be an early one with small logits.
        kwargs: See `DistillationModule`.

    Raises:
        ValueError: A value outside of its range, or fewer epochs than stairs.
    """

    paper = Paper(
        title="Annealing Knowledge Distillation",
        venue="EACL 2021",
        arxiv="2104.07163",
        tasks="GLUE, SQuAD, CIFAR",
        recipe="annealing_kd_glue",
        result="GLUE dev average 84.56, DistilRoBERTa; CIFAR-10 89.44, ResNet-8 (as reported by "
        "Continuation-KD)",
        ours="reviews: 69.7 ± 0.9, labels alone 70.3 ± 1.5 (docs/evidence/distillation.md)",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a user sets on the command line
        self,
        student: str | nn.Module,
        task: str | Task,
        teacher: str | nn.Module,
        max_temperature: int = 7,
        teacher_epochs: int = 14,
        label_epochs: int = 4,
        schedule: TemperatureSchedule = "stepwise",
        reduction: Literal["mean", "sum"] = "mean",
        center_logits: bool = False,
        best_from: Literal["stage1", "final_temperature"] = "stage1",
        **kwargs: Any,
    ) -> None:
        super().__init__(student, task, teacher, **kwargs)
        check_choice("schedule", schedule, get_args(TemperatureSchedule))
        check_choice("reduction", reduction, ("mean", "sum"))
        check_choice("best_from", best_from, ("stage1", "final_temperature"))
        if max_temperature < 1:
            raise ValueError(f"max_temperature must be at least 1, got {max_temperature}")
        if label_epochs < 0:
            raise ValueError(f"label_epochs must be at least 0, got {label_epochs}")
        if center_logits and self.task.num_labels == 1:
            raise ValueError(
                f"center_logits leaves nothing of the single logit of {self.task.name}; drop it"
            )
        if schedule in ("stepwise", "official"):
            _check_stairs(schedule, max_temperature, teacher_epochs)
        self.max_temperature, self.reduction = max_temperature, reduction
        self.center_logits, self.best_from = center_logits, best_from
        self.teacher_epochs, self.label_epochs = teacher_epochs, label_epochs
        self.temperature = 1.0
        self.schedule = Anneal(temperature=_SCHEDULES[schedule](max_temperature))

    @property
    @override
    def phases(self) -> Sequence[Phase]:
        start: Start = "best" if self.best_from == "stage1" else "last"
        return teacher_then_labels(self.teacher_epochs, self.label_epochs, start)

    @override
    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        if phase.name == "labels" and "teacher" in self.hparams:
            self.teacher = self.cache = None  # room for the rest; by its name it can come back

    @property
    @override
    def asks_teacher(self) -> bool:
        return self.phase != "labels"

    @override
    def configure_callbacks(self) -> list[L.Callback]:
        given = self.schedule in vars(self.trainer)["callbacks"]
        return [] if given or self.phase == "labels" else [self.schedule]

    @override
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        student = self.predict(batch)
        if self.phase == "labels":
            return {"hard": self.task.hard_loss(student, batch).mean()}
        distance = annealed_logit_mse(
            student.logits,
            self.teach(batch).logits,
            smoothing_factor(self.temperature, self.max_temperature),
            self.task.logit_mask(batch),
            self.reduction,
            self.center_logits,
        )
        return {"annealed": self.task.per_example(distance, batch).mean()}


def _check_stairs(schedule: str, max_temperature: int, epochs: int) -> None:
    if epochs < max_temperature:
        raise ValueError(
            f"schedule={schedule} gives each of {max_temperature} temperatures an epoch or more, "
            f"got teacher_epochs={epochs}; train longer or lower max_temperature"
        )
    if schedule == "official":
        last = ReleasedStairs(max_temperature)(Progress(0, None, epochs - 1, epochs))
        if last < 1:
            warnings.warn(
                f"the released schedule ends at temperature {last:g}: the teacher's logits are "
                f"multiplied by up to {smoothing_factor(last, max_temperature):.3g}; take "
                f"teacher_epochs that {max_temperature} divides, or schedule=stepwise",
                stacklevel=3,
            )


__all__ = ["AnnealingKD", "TemperatureSchedule"]
