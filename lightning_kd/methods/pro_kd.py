"""Pro-KD: follow the teacher's own training from checkpoint to checkpoint; then the labels alone.

Rezagholizadeh, Jafari, Saladi, Sharma, Saheb Pasand and Ghodsi, "Pro-KD: Progressive Distillation
by Following the Footsteps of the Teacher", COLING 2022, arXiv 2110.08532. The best checkpoint of a
teacher is often not the best to learn from, and trying them all is expensive; a larger teacher is
not always a better one. Pro-KD chooses none: the student follows the path of the teacher's
training, with a temperature that falls as the teacher matures.

Only the abstract was available to us, and no code was ever released. From the abstract: the idea,
the two problems it is for, and the falling temperature. Reconstructed from the same authors'
Annealing-KD: the squared distance to Phi(T) times the logits (``loss="mse"``), Phi(T) = 1 - (T - 1)
/ T_max, and a second phase on the labels that starts from the best student of the first. Ours, for
want of the text: one checkpoint per epoch of the teacher, checkpoints that share the student's
epochs evenly, a temperature on a straight line over the checkpoints, and all default values. The
other reading of the falling temperature, a softmax of that temperature, is ``loss="kl"``. Left out:
a new optimizer or learning rate for every checkpoint, moving on when the student's accuracy stands
still, and training teacher and student in turns.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.callbacks import TrajectoryRecorder
from lightning_kd.checks import check_at_least, check_choice
from lightning_kd.frozen import Frozen
from lightning_kd.functional import (
    annealed_logit_mse,
    checkpoint_of_epoch,
    checkpoint_temperature,
    epoch_temperature,
    smoothing_factor,
    visiting_order,
)
from lightning_kd.methods.base import Batch
from lightning_kd.methods.distillation import DistillationModule
from lightning_kd.paper import Paper
from lightning_kd.phases import Phase, Start, teacher_then_labels
from lightning_kd.progress import logs_now, show
from lightning_kd.tasks import Classification, Task
from lightning_kd.teachers import make_network
from lightning_kd.trajectory import TeacherTrajectory, TrajectoryCheckpoint


class ProKD(DistillationModule):
    r"""Regress :math:`\phi_j z_j` of checkpoint after checkpoint, then learn from the labels.

    Args:
        student: See `TaskModule`.
        task: See `TaskModule`.
        teacher: What ``--teacher.epochs`` fine-tunes, which leaves the trajectory; or the network
            as a module, for a trajectory without a ``config.json``. Otherwise not needed.
        trajectory: Folder of a `lightning_kd.trajectory.TeacherTrajectory`; None is that of the
            run's own teacher, and one that is given is a trained teacher's: none is trained then.
        num_checkpoints: K, so many of the trajectory, evenly spaced with the last; at most
            ``teacher_epochs``. None takes all, or as many as there are epochs.
        min_metric: Leave out checkpoints whose validation is below, such as those at chance.
        record_every_n_steps: Optimizer steps between the checkpoints of the run's own teacher; None
            records each of its epochs.
        max_temperature: :math:`T_{max}`, of the first checkpoint; the last has 1, and so has every
            one where this is 1.
        teacher_epochs: Of the phase ``teacher``, at least 1.
        label_epochs: Of the phase ``labels``; 0 leaves it out.
        loss: ``mse``: distance to :math:`\phi` times the logits; ``kl``: divergence of softmaxes of
            temperature T, times :math:`T^2` (for a regression, the squared distance).
        alpha: Weight of the teacher in its phase, in (0, 1]; the rest is the labels'.
        smoothing: Whether the temperature falls; without, it is 1: the trajectory alone.
        temperature_by: ``checkpoint``: tied to the checkpoint's number; ``epoch``: whole
            temperatures that share the epochs, as in Annealing-KD.
        order: ``forward``, or a control: ``reversed``, ``shuffled``. A temperature that is tied to
            a checkpoint goes with it.
        seed: Of the order ``shuffled``.
        reduction: Of the squared differences over the classes: ``mean`` or ``sum``.
        best_from: The labels start from the best student of the whole of ``stage1``, or from the
            last, which followed the ``last_checkpoint``: the best may be one with small logits.
        kwargs: See `DistillationModule`; ``teacher_bits`` cannot be used.

    Raises:
        ValueError: A value outside of its range, more checkpoints than epochs to follow them or
            than recorded, or a trajectory that is damaged or of another task or network.
    """

    paper = Paper(
        title="Pro-KD: Progressive Distillation by Following the Footsteps of the Teacher",
        venue="COLING 2022",
        arxiv="2110.08532",
        tasks="GLUE, SQuAD, CIFAR",
        recipe="pro_kd_glue",
        result="not available to us; the method is a reconstruction",
        ours="sparse parity, KL: 4 of 4 seeds, last teacher 2 of 4 (docs/evidence/pro_kd.md); "
        "reviews: 70.4 ± 2.6, labels alone 70.3 ± 1.5 (docs/evidence/distillation.md)",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a user sets on the command line
        self,
        student: str | nn.Module,
        task: str | Task,
        teacher: str | nn.Module | None = None,
        trajectory: str | None = None,
        num_checkpoints: int | None = None,
        min_metric: float | None = None,
        record_every_n_steps: int | None = None,
        max_temperature: int = 7,
        teacher_epochs: int = 14,
        label_epochs: int = 4,
        loss: Literal["mse", "kl"] = "mse",
        alpha: float = 1.0,
        smoothing: bool = True,
        temperature_by: Literal["checkpoint", "epoch"] = "checkpoint",
        order: Literal["forward", "reversed", "shuffled"] = "forward",
        seed: int = 0,
        reduction: Literal["mean", "sum"] = "mean",
        best_from: Literal["stage1", "last_checkpoint"] = "stage1",
        **kwargs: Any,
    ) -> None:
        super().__init__(student, task, "" if teacher is None else teacher, **kwargs)
        check_choice("loss", loss, ("mse", "kl"))
        check_choice("temperature_by", temperature_by, ("checkpoint", "epoch"))
        check_choice("order", order, ("forward", "reversed", "shuffled"))
        check_choice("reduction", reduction, ("mean", "sum"))
        check_choice("best_from", best_from, ("stage1", "last_checkpoint"))
        check_at_least(1, max_temperature=max_temperature, teacher_epochs=teacher_epochs)
        check_at_least(
            1, num_checkpoints=num_checkpoints, record_every_n_steps=record_every_n_steps
        )
        check_at_least(0, label_epochs=label_epochs)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be above 0 and at most 1, got {alpha}")
        _check_epochs(teacher_epochs, num_checkpoints=num_checkpoints or 1)
        _check_epochs(teacher_epochs, max_temperature=max_temperature * (temperature_by == "epoch"))
        self.trajectory, self.num_checkpoints = trajectory, num_checkpoints
        self.min_metric, self.record_every_n_steps = min_metric, record_every_n_steps
        self.max_temperature, self.loss, self.alpha = max_temperature, loss, alpha
        self.teacher_epochs, self.label_epochs = teacher_epochs, label_epochs
        self.smoothing, self.order, self.order_seed = smoothing, order, seed
        self.temperature_by, self.reduction, self.best_from = temperature_by, reduction, best_from
        self.temperature = 1.0
        self.path: TeacherTrajectory | None = None
        self.followed: tuple[TrajectoryCheckpoint, ...] = ()
        self._loaded: TrajectoryCheckpoint | None = None

    @property
    @override
    def phases(self) -> Sequence[Phase]:
        start: Start = "best" if self.best_from == "stage1" else "last"
        return teacher_then_labels(self.teacher_epochs, self.label_epochs, start)

    @override
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        student, terms = self.predict(batch), {}
        if self.phase == "labels":
            return {"hard": self.task.hard_loss(student, batch).mean()}
        if self.alpha < 1:
            terms["hard"] = (1 - self.alpha) * self.task.hard_loss(student, batch).mean()
        taught = self.teach(batch)
        if self.loss == "kl":
            distance = self.task.soft_loss(student, taught, batch, self.temperature)
        else:
            mask = self.task.logit_mask(batch)
            distance = annealed_logit_mse(
                student.logits, taught.logits, self.phi, mask, self.reduction
            )
            distance = self.task.per_example(distance, batch)
        terms["followed"] = self.alpha * distance.mean()
        return terms

    @property
    def phi(self) -> float:
        r"""Multiplier of the teacher's logits :math:`1 - (T - 1) / T_{max}`."""
        return smoothing_factor(self.temperature, self.max_temperature)

    def place(self, epoch: int) -> tuple[int, float]:
        """``(j, T)``: the checkpoint of an epoch, counted 1..K in training order, and T."""
        count, highest = len(self.followed), self.max_temperature
        order = visiting_order(count, self.order, self.order_seed)
        j = order[checkpoint_of_epoch(epoch, self.teacher_epochs, count) - 1]
        if not self.smoothing:
            return j, 1.0
        if self.temperature_by == "epoch":
            return j, float(epoch_temperature(epoch, self.teacher_epochs, highest))
        return j, float(checkpoint_temperature(j, count, highest))

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.phase == "labels":
            return
        # Here rather than at the start of the epoch, which a training that is resumed inside one
        # does not have.
        j, self.temperature = self.place(self.current_epoch)
        self._stand_at(self.followed[j - 1])
        moving = {"checkpoint": float(j), "temperature": self.temperature}
        moving |= {"phi": self.phi} if self.loss == "mse" else {}
        for name, value in moving.items():
            show(self.trainer, name, value)
        if logs_now(self.trainer):
            self.log_dict(moving, batch_size=1)

    def _stand_at(self, checkpoint: TrajectoryCheckpoint) -> None:
        """Put a checkpoint's weights into the one network that there is."""
        if checkpoint is self._loaded or self.path is None or self.teacher is None:
            return
        self.teacher.module.load_state_dict(self.path.weights(checkpoint))
        self._loaded, self._fingerprint = checkpoint, None
        self.find_cache(Path(checkpoint.file).stem)

    @override
    def find_cache(self, part: str = "") -> None:
        if part:  # each checkpoint has its own
            super().find_cache(part)

    # The teacher

    @property
    @override
    def asks_teacher(self) -> bool:
        return self.phase != "labels"

    @property
    @override
    def trains_teacher(self) -> bool:
        return self.trajectory is None

    @override
    def watch_teacher(self, folder: Path, epochs: int) -> list[L.Callback]:
        self._check_bits()
        count = self.num_checkpoints or 1
        if self.record_every_n_steps is None and count > epochs:
            raise ValueError(
                f"num_checkpoints={count}, but the teacher's {epochs} epoch(s) leave one each; "
                "raise --teacher.epochs or set --model.record_every_n_steps"
            )
        if not (folder / "checkpoints" / "last.ckpt").exists():  # nothing to go on from
            (folder / "trajectory" / "index.json").unlink(missing_ok=True)
        return [TrajectoryRecorder(folder / "trajectory", self.record_every_n_steps)]

    @override
    def learn_from_trained(self, folder: Path) -> None:
        self.trajectory = self.hparams["trajectory"] = str(folder / "trajectory")

    @override
    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        if phase.name == "labels":
            self.cache = None
            if "teacher" in self.hparams:
                self.teacher = None  # room for the rest; the trajectory still has it

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit" and self.asks_teacher:
            self._open()
        super().setup(stage)

    @override
    def load_teacher(self) -> None:
        """Build the network of the trajectory, at its last checkpoint, unless it is there."""
        path = self._open() if self.path is None else self.path
        if self.teacher is None:
            self.teacher = Frozen(make_network(path.folder, self.task))
            path.check_network(self.teacher.module.state_dict(), "the config.json beside it")
            self.teacher.module.load_state_dict(path.weights(self.followed[-1]))

    def _open(self) -> TeacherTrajectory:
        """Find everything that is wrong with the trajectory before anything is trained."""
        self._check_bits()
        if self.trajectory is None:
            raise ValueError("ProKD needs --model.trajectory, or --teacher.epochs to record one")
        path = TeacherTrajectory.read(self.trajectory)
        path.verify(self.task.labels if isinstance(self.task, Classification) else ())
        self.path, self._loaded = path, None
        self.followed = path.choose(self.num_checkpoints, self.teacher_epochs, self.min_metric)
        if "teacher" in self.hparams:
            self.teacher_name = str(path.folder)
        if self.teacher is not None:
            path.check_network(self.teacher.module.state_dict(), "the teacher")
        self.notes["followed_steps"] = [checkpoint.step for checkpoint in self.followed]
        return path

    def _check_bits(self) -> None:
        if self.teacher_bits is not None:
            raise ValueError(
                f"teacher_bits={self.teacher_bits}: a teacher whose weights are exchanged cannot "
                "be quantized; leave it out"
            )


def _check_epochs(epochs: int, **stairs: int) -> None:
    for name, value in stairs.items():
        if value > epochs:
            raise ValueError(f"{name}={value} takes as many teacher_epochs, got {epochs}")


__all__ = ["ProKD"]
