"""The arms of `distillation_evidence.py`: one line for each method, control and ablation.

An arm is added by adding an `Arm` to `ARMS`. Its epochs have to come to ``trial.epochs``, however
it divides them. All settings are ours, for short runs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from typing_extensions import override

from lightning_kd.callbacks import StudentAveraging
from lightning_kd.data import Transform
from lightning_kd.methods import (
    AnnealingKD,
    ContinuationKD,
    FineTuning,
    LabelRegularization,
    NoisyLabelKD,
    ProKD,
    TaskModule,
    VanillaKD,
)
from lightning_kd.models import make_student
from lightning_kd.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset

RIVALS = ("fine_tuning", "logit_mse", "vanilla_kd")
"""From the labels, the teacher's logits, both: what has to be beaten, and what tunes the rate."""

BOTH = ("student", "teacher")


@dataclass(frozen=True)
class Trial:
    """What an arm is made from.

    Attributes:
        model: The pre-trained one, of teachers and, cut, of students.
        task: Labels, losses and metrics.
        layers: Of the student; None keeps all.
        rate: Learning rate.
        epochs: That the student learns for.
        noise: Share of wrong labels that this trial is about.
        seed: Of the student.
        teacher: Makes the fine-tuned teacher if it is not there; its Hugging Face folder.
        copy: The same of the fine-tuned student of this seed.
        folds: Folder of out-of-fold answers.
    """

    model: str
    task: Task
    layers: tuple[int, ...] | None
    rate: float
    epochs: int
    noise: float
    seed: int
    teacher: Callable[[], Path]
    copy: Callable[[], Path]
    folds: Path

    @property
    def label_epochs(self) -> int:
        """Of methods that end with the labels alone: a fifth, as in 14 + 4 of Annealing-KD."""
        return max(1, round(self.epochs / 5))

    def student(self) -> dict[str, Any]:
        """A cut of the model; its head, its order of sentences and its dropout are the seed's."""
        L.seed_everything(self.seed, verbose=False)
        return {**pretrained(self.model, self.task, self.layers), "learning_rate": self.rate}

    def taught(self) -> dict[str, Any]:
        """A student, and a teacher whose answers all students share."""
        teacher = self.teacher()
        asked = {"teacher": str(teacher), "teacher_cache": f"{teacher}-answers"}
        return {**self.student(), **asked}


@dataclass(frozen=True)
class Arm:
    """A way to train the student.

    Attributes:
        make: The method.
        noisy: Who sees wrong labels where a trial has some; nobody: the arm is not in that grid.
        clean: Whether it is run without noise.
        callbacks: Of the training.
    """

    make: Callable[[Trial], TaskModule]
    noisy: tuple[str, ...] = ()
    clean: bool = True
    callbacks: Callable[[], list[L.Callback]] = list

    def in_grid(self, noise: float) -> bool:
        """Whether the arm is run at this rate of wrong labels."""
        return bool(self.noisy) if noise else self.clean


def pretrained(model: str, task: Task, layers: Sequence[int] | None = None) -> dict[str, Any]:
    """A network and its task. The embeddings, most of its weights, stay as they are.

    Training them would take as long as everything else, and is the same in every arm.
    """
    network: Any = make_student(model, task, layers)
    network.base_model.embeddings.requires_grad_(requires_grad=False)
    return {"student": network, "task": task}


def fine_tuning(trial: Trial, **settings: Any) -> TaskModule:
    """The labels alone."""
    return FineTuning(**trial.student(), **settings)


def vanilla(trial: Trial) -> TaskModule:
    """Labels and teacher, half and half."""
    return VanillaKD(**trial.taught(), alpha=0.5, temperature=2.0)


def logit_mse(trial: Trial) -> TaskModule:
    """The teacher's logits alone, by their mean squared error."""
    return VanillaKD(**trial.taught(), alpha=1.0, loss="mse")


def annealing(trial: Trial, *, labels: bool = True, schedule: Any = "stepwise") -> TaskModule:
    """A temperature for each epoch of the first phase."""
    rest = trial.label_epochs if labels else 0
    return AnnealingKD(
        **trial.taught(),
        max_temperature=trial.epochs - trial.label_epochs,
        teacher_epochs=trial.epochs - rest,
        label_epochs=rest,
        schedule=schedule,
    )


def continuation(trial: Trial) -> TaskModule:
    """A temperature for each epoch; margin and psi as the class has them."""
    return ContinuationKD(**trial.taught(), max_temperature=trial.epochs)


def progressive(trial: Trial) -> TaskModule:
    """A checkpoint for each epoch of the first phase."""
    path, epochs = f"{trial.teacher()}-path", trial.epochs - trial.label_epochs
    return ProKD(
        **trial.student(),
        trajectory=path,
        teacher_cache=f"{path}-answers",
        max_temperature=epochs,
        teacher_epochs=epochs,
        label_epochs=trial.label_epochs,
    )


def regularized(trial: Trial, regularizer: Any, **settings: float) -> TaskModule:
    """Of self_kd the teacher is the fine-tuned student of the same seed."""
    if regularizer == "self_kd":
        settings["teacher"] = str(trial.copy())  # type: ignore[assignment]
    return LabelRegularization(**trial.student(), regularizer=regularizer, **settings)  # type: ignore[arg-type]


def noisy(trial: Trial, mitigation: Any) -> TaskModule:
    """A remedy for wrong labels, which is told how many there are, if it asks."""
    settings: dict[str, Any] = {"noise_rate": trial.noise}
    if mitigation == "label_refine":
        settings = {"teacher": trial.model, "folds": 2, "fold_epochs": 2, "seed": trial.seed}
        settings |= {"fold_learning_rate": 1e-4, "fold_dir": str(trial.folds)}
    return NoisyLabelKD(**trial.student(), mitigation=mitigation, **settings)


ARMS: dict[str, Arm] = {
    "fine_tuning": Arm(fine_tuning, ("student",)),
    "logit_mse": Arm(logit_mse),
    "vanilla_kd": Arm(vanilla, BOTH),
    "annealing_kd": Arm(annealing),
    "continuation_kd": Arm(continuation),
    "pro_kd": Arm(progressive),
    "averaging": Arm(
        partial(fine_tuning, lr_schedule="constant"),
        callbacks=lambda: [StudentAveraging(start_fraction=0.5)],
    ),
    "annealing_kd_constant": Arm(partial(annealing, schedule="constant")),
    "annealing_kd_no_labels": Arm(partial(annealing, labels=False)),
    "label_smoothing": Arm(partial(regularized, regularizer="label_smoothing", alpha=0.1)),
    "tf_reg": Arm(partial(regularized, regularizer="tf_reg", alpha=0.5, gold=0.95)),
    "self_kd": Arm(partial(regularized, regularizer="self_kd", alpha=0.5)),
    "vanilla_kd_noisy_teacher": Arm(vanilla, ("teacher",), clean=False),
    "vanilla_kd_noisy_student": Arm(vanilla, ("student",), clean=False),
    "co_distill": Arm(partial(noisy, mitigation="co_distill"), ("student",)),
    "label_refine": Arm(partial(noisy, mitigation="label_refine"), ("student",)),
}


class Sample(Transform):
    """So many training examples, a random choice that depends on the seed.

    The data module's own limit is for all splits; here only training is made small.

    Args:
        count: At most so many.
        seed: Of the choice.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    @override
    def __call__(self, examples: "Dataset") -> "Dataset":
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(examples), generator=generator)[: self.count]
        return examples.select(sorted(chosen.tolist()))

    @override
    def fingerprint(self) -> str:
        return f"Sample(count={self.count}, seed={self.seed})"


def grid(names: Iterable[str], noise: float) -> list[str]:
    """Those of the arms that are run at this rate of wrong labels.

    >>> grid(["logit_mse", "vanilla_kd", "vanilla_kd_noisy_student"], 0.4)
    ['vanilla_kd', 'vanilla_kd_noisy_student']
    """
    return [name for name in names if ARMS[name].in_grid(noise)]
