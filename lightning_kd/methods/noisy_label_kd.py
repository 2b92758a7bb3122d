r"""Distillation where labels are wrong: noise reaches the student by its labels and its teacher.

Inspired by Bhardwaj et al., "Knowledge Distillation with Noisy Labels for Natural Language
Understanding" (W-NUT 2021), arXiv 2109.10147, which asks what label noise does to distillation on
GLUE and offers two remedies. Only its abstract and the beginning of its introduction were available
to us: **the two mitigations below are ours, not the paper's**, and so are all values.

- ``none`` is vanilla distillation, the base of the comparison. Which of teacher and student has
  seen noise is decided by the labels each was trained with (`lightning_kd.data.FlipLabels`): the
  same rate and seed in both runs is the realistic case.
- ``co_distill`` trains two students at once. Each minimizes the hard loss on those examples of a
  batch that its *peer* finds easy (co-teaching, Han et al. 2018), and a soft loss on all of them:
  plain co-teaching throws the others away. The first student is the result. Where a batch is split
  over processes or accumulation steps, each part selects its own examples.
- ``label_refine`` fine-tunes a short-lived teacher for each fold of the training set on the others,
  and lets its answers replace, blend or veto labels; they are the soft targets too. A teacher's
  answers to labels that it was trained on merely repeat the noise.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.callbacks import Anneal
from lightning_kd.checks import check_choice
from lightning_kd.functional.noise import blended_loss, relabel, robust_loss, small_loss
from lightning_kd.methods.base import Batch
from lightning_kd.methods.cross_fit import CrossFit, OutOfFold, cross_fit
from lightning_kd.methods.distillation import DistillationModule
from lightning_kd.models import load_model
from lightning_kd.paper import Paper
from lightning_kd.peer import mean_of, twin
from lightning_kd.progress import logs_now
from lightning_kd.schedules import Linear
from lightning_kd.tasks import Classification, Prediction, Task

Mitigation = Literal["none", "co_distill", "label_refine"]
HardLoss = Literal["task", "mae", "gce", "sce", "forward"]
Target = Literal["mutual", "teacher", "mixed"]
Refine = Literal["hard", "soft", "filter"]


class NoisyLabelKD(DistillationModule):
    r"""Minimize :math:`(1 - \alpha) L_{hard} + \alpha L_{soft}`, with a remedy for wrong labels.

    Args:
        student: See `TaskModule`.
        task: See `TaskModule`.
        teacher: See `DistillationModule`. For ``label_refine`` the model that the teachers of the
            folds start from, which must not have seen the labels (a pre-trained one; it is not
            fine-tuned before). ``co_distill`` with ``target="mutual"`` asks none.
        mitigation: ``none``, ``co_distill`` or ``label_refine``.
        alpha: Weight of the soft loss in [0, 1]; 0 is the hard loss alone (for ``co_distill``:
            co-teaching).
        temperature: Of the soft loss, above 0.
        hard_loss: ``task`` is the task's own; ``mae``, ``gce``, ``sce`` and ``forward`` (classes
            only) bear noise: `lightning_kd.functional`.
        noise_rate: Share of wrong labels in [0, 1), where it is needed: by ``co_distill``, which
            keeps ``1 - noise_rate`` of a batch in the end, and by ``forward``, which takes the
            noise for symmetric. ``label_refine`` reports an estimate.
        ramp_fraction: Share of the training, in (0, 1], in which ``co_distill`` goes from keeping
            everything to that.
        target: What ``co_distill`` takes soft targets from: the peer (``mutual``), the ``teacher``
            or both in halves (``mixed``).
        refine: ``hard``: a sure out-of-fold teacher replaces the label; ``soft``: it shares the
            hard loss with it; ``filter``: where it disagrees there is no hard loss.
        threshold: Probability above which ``hard`` is sure; 1 keeps every label.
        blend: Weight of the teacher in ``soft``, in [0, 1].
        folds: Number of folds, at least 2.
        fold_epochs: Epochs of each fold's teacher: few, before it memorizes.
        fold_learning_rate: Of the folds' teachers; decay, warm-up and schedule are the student's.
        fold_dir: Folder of their answers, for several runs to share; None: in the run's own.
        seed: Of the peer's head and the folds.
        kwargs: See `DistillationModule`.

    Raises:
        ValueError: A value out of range or missing, or no classes where classes are needed.
    """

    paper = Paper(
        title="Knowledge Distillation with Noisy Labels for Natural Language Understanding",
        venue="W-NUT 2021",
        arxiv="2109.10147",
        tasks="GLUE",
        recipe="noisy_label_kd_glue",
        result="not available to us; inspired by it, the mitigations are ours",
        ours="digits, 40 % noise: KD 87.2, co_distill 93.3 (docs/evidence/noisy_labels.md)",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a user sets on the command line
        self,
        student: str | nn.Module,
        task: str | Task,
        teacher: str | nn.Module | None = None,
        mitigation: Mitigation = "none",
        alpha: float = 0.5,
        temperature: float = 1.0,
        hard_loss: HardLoss = "task",
        noise_rate: float | None = None,
        ramp_fraction: float = 1 / 3,
        target: Target = "mutual",
        refine: Refine = "hard",
        threshold: float = 0.7,
        blend: float = 0.8,
        folds: int = 5,
        fold_epochs: int = 2,
        fold_learning_rate: float = 2e-5,
        fold_dir: str | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, task, "" if teacher is None else teacher, **kwargs)
        self.mitigation, self.alpha, self.temperature = mitigation, alpha, temperature
        self.hard_loss, self.noise_rate, self.target = hard_loss, noise_rate, target
        self.refine, self.threshold, self.blend = refine, threshold, blend
        shared = ("weight_decay", "warmup_fraction", "lr_schedule")
        settings = {name: getattr(self, name) for name in shared}
        settings["learning_rate"] = fold_learning_rate
        self.plan, self.fold_dir = CrossFit(folds, fold_epochs, seed, settings), fold_dir
        _check(self)
        self._robust: Callable[[Tensor, Tensor], Tensor] | None = None
        if hard_loss != "task":
            self._robust = robust_loss(hard_loss, noise_rate or 0.0, self.task.num_labels)
        self.out_of_fold: OutOfFold | None = None
        self._expected: str | None = None  # hash of the table that a checkpoint was made with
        self._disagreement: Tensor | None = None
        self.keep_rate = 1.0
        self.schedule: Anneal | None = None
        if mitigation == "co_distill":
            self.peer = twin(self.student, seed)
            line = Linear(1.0, 1 - (noise_rate or 0.0), until=ramp_fraction)
            self.schedule = Anneal(keep_rate=line)

    @override
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        if self.mitigation == "co_distill":
            return self._co_distill(batch)
        student = self.predict(batch)
        terms = {}
        if self.alpha < 1:
            refined = self.mitigation == "label_refine"
            hard = self._refined(student, batch) if refined else self._hard(student, batch)
            terms["hard"] = (1 - self.alpha) * hard.mean()
        if self.alpha > 0:
            terms["soft"] = self.alpha * self._soft(student, self.teach(batch), batch)
        return terms

    def _co_distill(self, batch: Batch) -> dict[str, Tensor]:
        ours, peers = self.predict(batch), self.task.predict(self.peer, batch)
        if isinstance(self.task, Classification):
            differ = self.task.decode(ours) != self.task.decode(peers)
            self._disagreement = differ.float().mean()
        terms = {}
        if self.alpha < 1:
            our_losses, peer_losses = self._hard(ours, batch), self._hard(peers, batch)
            our_picks = small_loss(our_losses.detach(), self.keep_rate)
            peer_picks = small_loss(peer_losses.detach(), self.keep_rate)
            terms["hard"] = (1 - self.alpha) * mean_of(our_losses, peer_picks)
            terms["peer_hard"] = (1 - self.alpha) * mean_of(peer_losses, our_picks)
        if self.alpha > 0:
            taught = [] if self.target == "mutual" else [self.teach(batch)]
            for name, learner, other in (("soft", ours, peers), ("peer_soft", peers, ours)):
                peer = [] if self.target == "teacher" else [Prediction(other.logits.detach())]
                # The mean of two divergences has the gradient of the divergence from their mean.
                losses = [self._soft(learner, target, batch) for target in taught + peer]
                terms[name] = self.alpha * torch.stack(losses).mean()
        return terms

    def _refined(self, student: Prediction, batch: Batch) -> Tensor:
        """The hard loss ``[b]`` with labels that the out-of-fold teachers had a word in."""
        probabilities = self.teach(batch).logits.softmax(-1)
        if self.refine == "hard":
            labels = relabel(batch["labels"], probabilities, self.threshold)
            return self._hard(student, {**batch, "labels": labels})
        hard = self._hard(student, batch)
        if self.refine == "filter":
            return hard * (probabilities.argmax(-1) == batch["labels"])
        teachers = blended_loss(student.logits, batch["labels"], probabilities, 1.0)
        return (1 - self.blend) * hard + self.blend * teachers

    def _hard(self, prediction: Prediction, batch: Batch) -> Tensor:
        if self._robust is not None:
            return self._robust(prediction.logits, batch["labels"])
        return self.task.hard_loss(prediction, batch)

    def _soft(self, student: Prediction, teacher: Prediction, batch: Batch) -> Tensor:
        return self.task.soft_loss(student, teacher, batch, self.temperature).mean()

    @override
    def configure_callbacks(self) -> list[L.Callback]:
        there = vars(self.trainer)["callbacks"]
        return [] if self.schedule is None or self.schedule in there else [self.schedule]

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.mitigation == "co_distill":
            self.peer.train()

    @property
    @override
    def asks_teacher(self) -> bool:
        mutual = (self.mitigation, self.target) == ("co_distill", "mutual")
        return self.alpha > 0 and self.mitigation != "label_refine" and not mutual

    @override
    def load_teacher(self) -> None:
        self._require_teacher()
        super().load_teacher()

    def _require_teacher(self) -> None:
        if self.teacher is None and not self.teacher_name:
            raise ValueError(
                f"mitigation {self.mitigation} needs a teacher; give --model.teacher, or use "
                "co_distill with target mutual"
            )

    @override
    def on_train_start(self) -> None:
        if self.mitigation != "label_refine":
            return
        folder = Path(self.fold_dir or f"{self.trainer.default_root_dir}/out_of_fold").expanduser()
        table = cross_fit(self.plan, self.task, self._unseen, self.trainer, folder)
        if self._expected not in (None, table.sha256):
            raise ValueError(
                f"the checkpoint was trained with other out-of-fold answers than {folder} gives; "
                "put its files and the training set back as they were, or start anew"
            )
        self.out_of_fold, self._expected = table, None
        self.notes |= table.notes(self.refine, self.threshold)

    def _unseen(self) -> nn.Module:
        """The model that the teachers of all folds start from."""
        self._require_teacher()
        if self.teacher is not None:
            return self.teacher.module
        with torch.random.fork_rng():
            torch.manual_seed(self.plan.draw("head"))
            return load_model(self.teacher_name, self.task)

    @override
    def teach(self, batch: Batch) -> Prediction:
        if self.mitigation != "label_refine":
            return super().teach(batch)
        if self.out_of_fold is None:
            raise RuntimeError("the teachers of the folds are trained when a training starts")
        return Prediction(self.out_of_fold.find(batch))

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self._disagreement is not None and logs_now(self.trainer):
            self.log("train/disagreement", self._disagreement, batch_size=len(batch["labels"]))
        return loss

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["out_of_fold"] = self.out_of_fold.sha256 if self.out_of_fold else None

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._expected = checkpoint["out_of_fold"]


def _check(method: NoisyLabelKD) -> None:
    """Raise for values out of range, and for what has no meaning together."""
    kinds = {"mitigation": Mitigation, "hard_loss": HardLoss, "target": Target, "refine": Refine}
    for name, kind in kinds.items():
        check_choice(name, getattr(method, name), get_args(kind))
    ranges = (
        ("alpha", 0 <= method.alpha <= 1, "in [0, 1]"),
        ("blend", 0 <= method.blend <= 1, "in [0, 1]"),
        ("temperature", method.temperature > 0, "positive"),
        ("threshold", method.threshold >= 0, "at least 0"),
        ("noise_rate", 0 <= (method.noise_rate or 0) < 1, "in [0, 1)"),
    )
    for name, holds, rule in ranges:
        if not holds:
            raise ValueError(f"{name} must be {rule}, got {getattr(method, name)}")
    needs_classes = method.mitigation == "label_refine" or method.hard_loss != "task"
    if needs_classes and not isinstance(method.task, Classification):
        raise ValueError(
            f"label_refine and the robust losses need labels that are classes, {method.task.name} "
            "has none; use the mitigation none or co_distill, with the hard_loss task"
        )
    needs_rate = {"co_distill", "forward"} & {method.mitigation, method.hard_loss}
    if needs_rate and method.noise_rate is None:
        raise ValueError(
            "co_distill and hard_loss forward need a noise_rate; label_refine reports an estimate"
        )


__all__ = ["NoisyLabelKD"]
