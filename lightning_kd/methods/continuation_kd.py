"""Continuation-KD: from an easy objective to the real one, without a switch.

Jafari, Kobyzev, Rezagholizadeh, Poupart and Ghodsi, "Continuation KD: Improved Knowledge
Distillation through the Lens of Continuation Optimization", Findings of EMNLP 2022, arXiv
2212.05998. The loss (Eq. 3) is psi times the task's own plus (1 - psi) times a hinge (Eq. 4),

    max(0, |z_s - phi z_t|^2 - m phi),    phi = 1 - (T - 1) / T_max    (Eq. 5),

with psi rising to 1 and T falling to 1 by epochs: the teacher is shown small first, and inside a
tube around it, whose width grows alike, the student is left alone and does not learn its noise.

No code was released, so the paper alone decides here; where it is silent: the hinge is applied to
each example, then averaged. **The paper names no margin m**: ``margin="auto"`` is a rule of ours
(`lightning_kd.functional.quantile_margin`). What differs: Algorithm 1 gives the first stage an
epoch less than the others and takes T to 0 in the end; the default rule divides the epochs evenly,
and ``schedule="alg1"`` stops at 1. A psi of the formulas begins at 1/150 or 1/40, though the text
says 0. In the paper's settings psi reaches 1 before phi does, so the student never sees the whole
teacher; ``anneal_over="kd_epochs"`` lets it. Left out: a best checkpoint of the epochs with psi = 1
only; as in the paper it is the best of all.
"""

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_kd.callbacks import Anneal
from lightning_kd.checks import check_choice
from lightning_kd.functional import annealed_logit_mse, hinge, quantile_margin, smoothing_factor
from lightning_kd.methods.base import Batch
from lightning_kd.methods.distillation import DistillationModule
from lightning_kd.paper import Paper
from lightning_kd.paper_schedules import AlgorithmOne, ScaledPsi, WhileBelowOne, epoch_starts
from lightning_kd.progress import Progress, logs_now
from lightning_kd.schedules import Schedule, StepDown
from lightning_kd.tasks import Task

_MARGIN_EXAMPLES = 256
_DEAD = 0.05
"""Share of examples that pull in the first epoch, below which the margin is too wide."""


class ContinuationKD(DistillationModule):
    r"""Minimize :math:`\psi L_{hard} + (1 - \psi) \max(0, \|z_s - \phi z_t\|^2 - m \phi)`.

    Args:
        student: See `TaskModule`.
        task: See `TaskModule`.
        teacher: See `DistillationModule`.
        margin: m, at least 0; 0 has no tube. ``auto``: the `quantile_margin` of the teacher's
            answers to 256 examples spread over the training set, so that a resumed run finds it
            again. Its unit is that of the squared distances, see ``reduction``.
        margin_quantile: Of ``auto``, in [0, 1].
        psi: Weight of the labels, from 0 to 1 and never falling, such as
            `lightning_kd.paper_schedules.LinearPsi`. None is `ScaledPsi`: up to 1 in three quarters
            of the epochs, the shape of the paper's CIFAR runs.
        max_temperature: :math:`T_{max}`; 1 does not anneal.
        schedule: Of the temperature: ``stepwise``, whole temperatures that share the epochs evenly
            (with fewer epochs some are left out), or ``alg1``, the paper's Algorithm 1, which needs
            as many epochs as temperatures.
        anneal_over: The epochs that the temperature falls in: ``total_epochs`` (the paper), or
            ``kd_epochs``, those with psi below 1.
        anneal_teacher: Whether phi multiplies the teacher's logits.
        anneal_margin: Whether phi multiplies the margin.
        hinge_level: ``sample``: of each example's distance; ``batch``: of the mean, all or none,
            which depends on how many examples a process and an accumulated step have at a time.
        reduction: Of the squared differences over the classes: ``sum`` (the paper's formula) or
            ``mean``; an equal margin is divided by the number of classes.
        kwargs: See `DistillationModule`.

    Raises:
        ValueError: A value outside of its range.
    """

    paper = Paper(
        title="Continuation KD: Improved Knowledge Distillation through the Lens of Continuation "
        "Optimization",
        venue="Findings of EMNLP 2022",
        arxiv="2212.05998",
        tasks="GLUE, CIFAR",
        recipe="continuation_kd_glue",
        result="GLUE dev average 85.64, DistilRoBERTa; CIFAR-10 90.21, ResNet-8",
        ours="reviews: 69.4 ± 3.4, labels alone 70.3 ± 1.5 (docs/evidence/distillation.md)",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a user sets on the command line
        self,
        student: str | nn.Module,
        task: str | Task,
        teacher: str | nn.Module,
        margin: float | Literal["auto"] = "auto",
        margin_quantile: float = 0.1,
        psi: Schedule | None = None,
        max_temperature: int = 10,
        schedule: Literal["stepwise", "alg1"] = "stepwise",
        anneal_over: Literal["total_epochs", "kd_epochs"] = "total_epochs",
        anneal_teacher: bool = True,
        anneal_margin: bool = True,
        hinge_level: Literal["sample", "batch"] = "sample",
        reduction: Literal["mean", "sum"] = "sum",
        **kwargs: Any,
    ) -> None:
        super().__init__(student, task, teacher, **kwargs)
        self.hparams.pop("psi", None)  # an object, and no evaluation asks for it
        check_choice("schedule", schedule, ("stepwise", "alg1"))
        check_choice("anneal_over", anneal_over, ("total_epochs", "kd_epochs"))
        check_choice("hinge_level", hinge_level, ("sample", "batch"))
        check_choice("reduction", reduction, ("mean", "sum"))
        if isinstance(margin, str):
            check_choice("margin", margin, ("auto",))
        elif not margin >= 0:
            raise ValueError(f"margin must be auto or at least 0, got {margin}")
        if not 0 <= margin_quantile <= 1:
            raise ValueError(f"margin_quantile must be in [0, 1], got {margin_quantile}")
        if max_temperature < 1:
            raise ValueError(f"max_temperature must be at least 1, got {max_temperature}")
        self.margin: float | None = None if isinstance(margin, str) else float(margin)
        self.margin_quantile, self.max_temperature = margin_quantile, max_temperature
        self.anneal_teacher, self.anneal_margin = anneal_teacher, anneal_margin
        self.hinge_level, self.reduction = hinge_level, reduction
        self.psi, self.temperature = 0.5, 1.0
        weight = ScaledPsi() if psi is None else psi
        down: Schedule = AlgorithmOne(max_temperature)
        if schedule == "stepwise":
            down = StepDown(max_temperature, 1, every_epochs=None)
        if anneal_over == "kd_epochs":
            down = WhileBelowOne(down, weight)
        self.schedule = Anneal(psi=weight, temperature=down)
        self._active: list[Tensor] = []

    @override
    def configure_callbacks(self) -> list[L.Callback]:
        return [] if self.schedule in vars(self.trainer)["callbacks"] else [self.schedule]

    @override
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        student, terms = self.predict(batch), {}
        if self.psi > 0:
            terms["hard"] = self.psi * self.task.hard_loss(student, batch).mean()
        if self.psi < 1:
            phi = smoothing_factor(self.temperature, self.max_temperature)
            distance = self.distance(student.logits, batch, phi if self.anneal_teacher else 1.0)
            if self.hinge_level == "batch":
                distance = distance.mean(0, keepdim=True)
            left = hinge(distance, self._margin() * (phi if self.anneal_margin else 1.0))
            terms["hinge"] = (1 - self.psi) * left.mean()
            self._active.append((left.detach() > 0).float().mean())
        return terms

    def distance(self, logits: Tensor, batch: Batch, factor: float) -> Tensor:
        """Squared distance ``[b]`` to the teacher's logits times ``factor``."""
        taught, mask = self.teach(batch).logits, self.task.logit_mask(batch)
        distance = annealed_logit_mse(logits, taught, factor, mask, self.reduction)
        return self.task.per_example(distance, batch)

    @override
    def check_length(self, max_epochs: int) -> None:
        self._check_schedules(Progress(0, max_epochs, 0, max_epochs))

    @override
    def on_train_start(self) -> None:
        self._check_schedules(Progress.of(self.trainer))
        if self.margin is None:
            self.margin = self._auto_margin()
        self.on_train_epoch_start()  # which is not called in an epoch that is resumed

    @override
    def on_train_epoch_start(self) -> None:
        # psi never falls: once it is 1 nobody asks any more
        alone = self.schedule.schedules["psi"](Progress.of(self.trainer)) >= 1
        if alone and "teacher" in self.hparams:
            self.teacher = self.cache = None  # room for the rest; by its name it can come back

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self._active and logs_now(self.trainer):
            self.log("train/active", self._active[-1])  # the share of examples outside the tube
        if self.current_epoch > 0:
            self._active.clear()
        return loss

    @override
    def on_train_epoch_end(self) -> None:
        if self._active:
            active = torch.stack(self._active).mean().item()
            self._active.clear()
            if active < _DEAD:
                warnings.warn(
                    f"the teacher moved only {active:.1%} of the examples in the first epoch: the "
                    f"others were inside the margin of {self._margin():.4g}; lower margin",
                    stacklevel=2,
                )

    # Inside

    def _margin(self) -> float:
        if self.margin is None:
            raise RuntimeError(
                "margin=auto is known when a training has started; give margin a number before"
            )
        return self.margin

    @torch.no_grad()
    def _auto_margin(self) -> float:
        norms = []
        for batch in _spread(self.trainer.train_dataloader, _MARGIN_EXAMPLES):
            moved = self.trainer.strategy.batch_to_device(batch)
            with self.trainer.precision_plugin.forward_context():
                answers = self.teach(moved).logits
                norms.append(self.distance(torch.zeros_like(answers), moved, 1.0))
        return quantile_margin(
            torch.cat(norms), self.max_temperature, self.anneal_margin, self.margin_quantile
        )

    def _check_schedules(self, progress: Progress) -> None:
        values = [
            {name: schedule(start) for name, schedule in self.schedule.schedules.items()}
            for start in epoch_starts(progress)
        ]
        weights = [value["psi"] for value in values]
        if sorted(weights) != weights or not 0 <= weights[0] <= weights[-1] <= 1:
            raise ValueError(f"psi must rise from 0 to 1, its epochs begin at {weights}")


def _spread(loader: Any, count: int) -> Iterator[Batch]:
    """Batches of at most ``count`` examples spread evenly over the data set of a loader.

    A function of the data alone: not of the order of training, which the loader keeps.
    """
    size = len(loader.dataset)
    count = min(count, size)
    picked = [i * size // count for i in range(count)]
    lists = [picked[k : k + 32] for k in range(0, count, 32)]
    options: dict[str, Any] = {"sampler": lists, "batch_size": None}
    if loader.batch_sampler is not None:  # the loader puts examples together one by one
        options = {"batch_sampler": lists}
    # a generator of its own: making an iterator draws from the global one otherwise
    options |= {"collate_fn": loader.collate_fn, "generator": torch.Generator()}
    yield from DataLoader(loader.dataset, **options)


__all__ = ["ContinuationKD"]
