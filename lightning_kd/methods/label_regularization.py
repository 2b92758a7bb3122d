r"""Fine-tuning with a regularized label: smoothed, teacher-free, or mixed with a teacher's answer.

Kobyzev, Jafari, Rezagholizadeh, Li, Do-Omri, Lu, Poupart and Ghodsi, Do we need Label
Regularization to Fine-tune Pre-trained Language Models? (EACL 2023), arXiv 2205.12428. The paper
compares five arms and finds no meaningful gain over plain fine-tuning for pre-trained students,
over more than 600 trials, each of five runs, but a significant one for the same networks trained
from scratch (``student_init=random``). Beyond the five runs none of its settings was confirmed.

All arms minimize :math:`(1 - \alpha) L_{hard} + \alpha R`; ``alpha`` weights the *regularizer*.
``R`` is the cross-entropy against a uniform distribution (``label_smoothing``) or against one
that gives the label most (``tf_reg``, Yuan et al. 2020, arXiv 1909.11723), or the divergence from
the answers of a teacher (``kd``) or of a fine-tuned copy of the same student (``self_kd``). Texts
differ in four conventions, all options here: whether smoothing gives the label its part too
(``smooth_over``), mixture or divergence (``form``), the factor :math:`\tau^2` (``tau_squared``),
and the Teacher-free KD code's own target and reduction (``form=released``). What an example's
target comes to is printed at the start. The study itself is
``benchmarks/label_regularization_study.py``.
"""

from typing import Any, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.checks import check_choice
from lightning_kd.functional import (
    confidence,
    gold_entropy,
    gold_target,
    label_gap,
    mixed_target,
    softened_gold,
)
from lightning_kd.methods.base import Batch
from lightning_kd.methods.distillation import DistillationModule
from lightning_kd.paper import Paper
from lightning_kd.progress import logs_now
from lightning_kd.regularizers import (
    HAND_MADE,
    TAUGHT,
    Form,
    Regularizer,
    SmoothOver,
    check_copy,
    check_read,
    check_teacher,
)
from lightning_kd.tasks import Prediction, Regression, Task

MOST_SHOWN = 6
"""Classes of a target that are printed."""


class LabelRegularization(DistillationModule):
    r"""Minimize :math:`(1 - \alpha) L_{hard} + \alpha R` with one of five regularizers.

    Args:
        student: See `TaskModule`.
        task: See `TaskModule`.
        regularizer: ``none`` (fine-tuning), ``label_smoothing``, ``tf_reg``, ``self_kd`` or ``kd``.
        teacher: See `DistillationModule`; of ``kd`` and ``self_kd`` only. For ``self_kd`` a
            fine-tuned copy of the student: the export of the run of ``none`` with the same seed, or
            the student's own name with ``--teacher.epochs``, which is that run (give it the same
            epochs and learning rate).
        alpha: Weight of the regularizer in [0, 1]; 0 is fine-tuning, bit for bit. ``none`` sets 0.
        smooth_over: Of ``label_smoothing``: ``all`` classes (default; PyTorch's convention) or the
            ``wrong`` ones alone, which smooths more.
        gold: Of ``tf_reg``: the label's share in [0, 1], by default 0.95; 1 is fine-tuning.
        form: Of ``tf_reg``: ``mixture`` (default), ``kl`` (lower by a constant), or ``released``:
            the Teacher-free KD code's softened target and per-class mean.
        temperature: Above 0; by default 2 for ``kd`` and ``self_kd``, where it softens both models,
            and 20 for ``form=released``, where it flattens the target.
        tau_squared: Of ``kd`` and ``self_kd``: the factor :math:`\tau^2` of the divergence, by
            default there.
        multiplier: Of ``form=released``: that code's factor of the regularizer, by default 1.
        kwargs: See `DistillationModule`.

    Raises:
        ValueError: A value outside of its range, an option that the regularizer does not read, a
            missing or useless teacher, or a hand-made target for a regression.
    """

    paper = Paper(
        title="Do we need Label Regularization to Fine-tune Pre-trained Language Models?",
        venue="EACL 2023",
        arxiv="2205.12428",
        tasks="GLUE",
        recipe="label_regularization_glue",
        ours="reviews: smoothing 69.9, tf_reg 70.0, self-KD 70.2, labels alone 70.3 "
        "(docs/evidence/distillation.md)",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a user sets on the command line
        self,
        student: str | nn.Module,
        task: str | Task,
        regularizer: Regularizer = "label_smoothing",
        teacher: str | nn.Module | None = None,
        alpha: float = 0.1,
        smooth_over: SmoothOver | None = None,
        gold: float | None = None,
        form: Form | None = None,
        temperature: float | None = None,
        tau_squared: bool | None = None,
        multiplier: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice("regularizer", regularizer, get_args(Regularizer))
        check_teacher(regularizer, teacher is not None and teacher != "", kwargs)
        super().__init__(student, task, "" if teacher is None else teacher, **kwargs)
        if regularizer in HAND_MADE and isinstance(self.task, Regression):
            raise ValueError(
                f"{regularizer} is not defined for regression, and {self.task.name} is one; use "
                "none, self_kd or kd"
            )
        given = {
            "smooth_over": smooth_over,
            "gold": gold,
            "form": form,
            "temperature": temperature,
            "tau_squared": tau_squared,
            "multiplier": multiplier,
        }
        check_read(regularizer, form, given)
        self.regularizer: Regularizer = regularizer
        self.alpha = 0.0 if regularizer == "none" else alpha
        self.smooth_over: SmoothOver = smooth_over or "all"
        self.form: Form = form or "mixture"
        self.gold = 0.95 if gold is None else gold
        usual = 20.0 if form == "released" else 2.0
        self.temperature = usual if temperature is None else temperature
        self.tau_squared = tau_squared is not False
        self.multiplier = 1.0 if multiplier is None else multiplier
        self._check_values()
        self._seen: tuple[Tensor, Tensor | None] = (torch.empty(0), None)
        self._announced = False

    def _check_values(self) -> None:
        check_choice("smooth_over", self.smooth_over, get_args(SmoothOver))
        check_choice("form", self.form, get_args(Form))
        for name in ("alpha", "gold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("temperature", "multiplier"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    @override
    def copies_student(self) -> bool:
        return self.regularizer == "self_kd"

    @property
    @override
    def asks_teacher(self) -> bool:
        return self.regularizer in TAUGHT and self.alpha > 0

    @property
    @override
    def trains_teacher(self) -> bool:
        return self.asks_teacher or not self.teacher_name  # which is refused: there is none

    @override
    def load_teacher(self) -> None:
        if self.asks_teacher:
            super().load_teacher()
        if self.regularizer == "self_kd" and self.teacher is not None:
            check_copy(self.student, self.teacher.module)

    @override
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        student = self.predict(batch)
        taught = self.teach(batch) if self.asks_teacher else None
        self._seen = student.logits.detach(), None if taught is None else taught.logits
        hard = self.task.hard_loss(student, batch)
        terms = {}
        if self.alpha < 1:
            terms["hard"] = (1 - self.alpha) * hard.mean()
        if taught is not None:
            terms["regularizer"] = self.alpha * self._divergence(student, taught, batch).mean()
        elif self.alpha > 0:
            terms["regularizer"] = self.alpha * self._hand_made(student, hard, batch).mean()
        return terms

    def _divergence(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        soft = self.task.soft_loss(student, taught, batch, self.temperature)
        if self.tau_squared or isinstance(self.task, Regression):  # squared errors know no tau
            return soft
        return soft / self.temperature**2

    def _hand_made(self, student: Prediction, hard: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy plus a linear term: no tensor of targets is made."""
        mask = self.task.logit_mask(batch)
        gap = label_gap(student.logits, batch["labels"], mask)
        num_classes: Any = student.logits.shape[-1]
        if mask is not None:
            num_classes = mask.expand_as(student.logits).sum(-1)
        gold = self._gold(num_classes)
        loss = hard + self.task.per_example((1 - gold) * gap, batch)
        if self.form != "mixture":
            loss = loss - gold_entropy(gold, num_classes)
        return loss * self.multiplier / num_classes if self.form == "released" else loss

    def _gold(self, num_classes: Any) -> Any:
        """The label's share in the regularizing distribution, for a number or a tensor of them."""
        if self.form != "mixture" and isinstance(num_classes, Tensor):
            raise ValueError(
                f"form={self.form} needs the same number of classes in every example, which "
                f"{self.task.name} has not; use form=mixture"
            )
        if self.form == "released":
            return softened_gold(self.gold, num_classes, self.temperature)
        if self.regularizer == "tf_reg":
            return self.gold
        return 1 / num_classes if self.smooth_over == "all" else 0.0

    # What a run says about itself

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._announced = False

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if not self._announced:
            self.print(self._announcement(batch))
            self._announced = True
        if logs_now(self.trainer) and not isinstance(self.task, Regression):
            largest, entropy = (self.task.per_example(v, batch) for v in confidence(self._seen[0]))
            means = {"train/max_probability": largest.mean(), "train/entropy": entropy.mean()}
            self.log_dict(means, batch_size=len(largest))
        return loss

    def effective_target(self, batch: Batch) -> tuple[int, Tensor]:
        r"""What the first example of the batch last trained on is drawn to, and its label's class.

        The mixture :math:`q' = (1 - \alpha) q + \alpha r` over the classes, ``[c]``, at the first
        place that has a label; of a regression the mean of label and taught number, ``[1]``. At a
        temperature other than 1, ``r`` is the teacher's softened answer.
        """
        logits, taught = self._seen
        labels = batch["labels"][0].flatten()
        if isinstance(self.task, Regression):
            number = labels.float()
            return 0, number if taught is None else number.lerp(taught[0].float(), self.alpha)
        place = int((labels >= 0).int().argmax())
        label, num_classes = labels[place], logits.shape[-1]
        mask = self.task.logit_mask(batch)
        if mask is not None:
            num_classes = int(mask.expand_as(logits)[0].reshape(-1, num_classes)[place].sum())
        if taught is not None:
            answer = taught[0].float().reshape(-1, taught.shape[-1])[place]
            regularizing = (answer / self.temperature).softmax(-1)
        else:
            gold = 1.0 if self.regularizer == "none" else self._gold(num_classes)
            regularizing = gold_target(label, num_classes, gold)
        return int(label), mixed_target(label, regularizing, self.alpha)

    def _announcement(self, batch: Batch) -> str:
        label, target = self.effective_target(batch)
        name = f"{self.regularizer} with alpha={self.alpha:g} (the weight of the regularizer)"
        if isinstance(self.task, Regression):
            return f"{name}: the first example is drawn to {target.item():.4g}"
        shares = [f"{value:.4f}" for value in target[:MOST_SHOWN].tolist()]
        if len(target) > MOST_SHOWN:
            shares.append(f"... ({len(target)} classes)")
        return f"{name}: the target of an example of class {label} is {', '.join(shares)}"


__all__ = ["LabelRegularization"]
