"""Tasks: what a benchmark asks and how an answer is scored, so that no method has to know.

A *task* turns a model's output into a `Prediction`, prices it (hard and soft losses, one value per
example) and scores it (the benchmark's official metrics). A loss written once against it serves
every kind of benchmark. Letters in shapes: ``b`` batch, ``s`` sites (places in an example
where an answer is given), ``c`` classes.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryF1Score,
    MatthewsCorrCoef,
    MulticlassAccuracy,
)
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from lightning_kd.functional import kd_loss

NOT_INPUTS = ("labels", "idx")
"""Keys of a batch that are not arguments of the model."""


@dataclass(frozen=True)
class Prediction:
    """What a model said about a batch.

    Attributes:
        logits: ``[b, *s, c]``, unnormalized scores; a regression has one "class".
        hidden_states: One ``[b, l, d]`` per layer, embeddings first, when they were asked for.
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


class Task(ABC):
    """One kind of question, with its losses and its official metrics.

    Attributes:
        name: The benchmark's name for it, as users type it.
        num_labels: Width of the last axis of the logits.
        monitor: The metric that chooses checkpoints and sizes; higher is better.
        eval_sets: Suffixes of the evaluation sets; ``""`` is the main one.
        auto_class: The transformers class that puts the right head on a model.
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    name: str
    num_labels: int

    def __init__(self, name: str, metrics: Sequence[str], eval_sets: Sequence[str] = ("",)) -> None:
        self.name = name
        self.metric_names = tuple(metrics)
        self.monitor = self.metric_names[0]
        self.eval_sets = tuple(eval_sets)

    def predict(
        self, model: nn.Module, batch: dict[str, Tensor], hidden_states: bool = False
    ) -> Prediction:
        """One forward pass of ``model`` on ``batch``."""
        inputs: dict[str, Any] = {k: v for k, v in batch.items() if k not in NOT_INPUTS}
        if hidden_states:
            inputs["output_hidden_states"] = True
        output = model(**inputs)
        return Prediction(output.logits, output.hidden_states if hidden_states else None)

    def metrics(self) -> MetricCollection:
        """Fresh accumulators of the official metrics, keyed by name."""
        return MetricCollection({name: self._metric(name) for name in self.metric_names})

    def per_example(
        self, values: Float[Tensor, " b *s"], batch: dict[str, Tensor]
    ) -> Float[Tensor, " b"]:
        """Mean over an example's sites; these tasks have one site, so nothing is left out."""
        del batch  # tasks with padded sites read their mask from it
        return values.flatten(1).mean(1) if values.dim() > 1 else values

    @abstractmethod
    def hard_loss(self, prediction: Prediction, batch: dict[str, Tensor]) -> Float[Tensor, " b"]:
        """Loss against the labels, one value per example."""

    @abstractmethod
    def soft_loss(
        self,
        student: Prediction,
        teacher: Prediction,
        batch: dict[str, Tensor],
        temperature: float = 1.0,
    ) -> Float[Tensor, " b"]:
        """Loss against a teacher's answer, one value per example."""

    @abstractmethod
    def decode(self, prediction: Prediction) -> Shaped[Tensor, " b"]:
        """The answer itself: a class index or a real number."""

    @abstractmethod
    def _metric(self, name: str) -> Metric: ...


class Classification(Task):
    """Choose one of ``labels``.

    >>> Classification("sst2", labels=("negative", "positive")).num_labels
    2
    """

    def __init__(
        self,
        name: str,
        labels: Sequence[str],
        metrics: Sequence[str] = ("accuracy",),
        eval_sets: Sequence[str] = ("",),
    ) -> None:
        super().__init__(name, metrics, eval_sets)
        self.labels = tuple(labels)
        self.num_labels = len(self.labels)

    def hard_loss(self, prediction: Prediction, batch: dict[str, Tensor]) -> Float[Tensor, " b"]:
        """Cross-entropy; 0 when the right class has all the probability."""
        return nn.functional.cross_entropy(
            prediction.logits.float(), batch["labels"], reduction="none"
        )

    def soft_loss(
        self,
        student: Prediction,
        teacher: Prediction,
        batch: dict[str, Tensor],
        temperature: float = 1.0,
    ) -> Float[Tensor, " b"]:
        """Hinton's tempered KL divergence (`lightning_kd.functional.kd_loss`)."""
        return self.per_example(kd_loss(student.logits, teacher.logits, temperature), batch)

    def decode(self, prediction: Prediction) -> Int[Tensor, " b"]:
        """Index of the highest logit."""
        return prediction.logits.argmax(-1)

    def _metric(self, name: str) -> Metric:
        # Predictions are class indices, which the multiclass forms take for two classes too.
        match name:
            case "accuracy":
                return MulticlassAccuracy(self.num_labels, average="micro")
            case "f1":
                return BinaryF1Score()
            case "matthews":
                return MatthewsCorrCoef(task="multiclass", num_classes=self.num_labels)
        raise ValueError(
            f"Classification has no metric {name!r}; choose from accuracy, f1, matthews"
        )


class Regression(Task):
    """Predict one real number between ``low`` and ``high``.

    A softmax over a single logit is constant, so a KL divergence would be zero for every student:
    both losses are squared errors.
    """

    num_labels = 1

    def __init__(
        self,
        name: str,
        low: float,
        high: float,
        metrics: Sequence[str] = ("pearson", "spearman"),
    ) -> None:
        super().__init__(name, metrics)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low must be below high, got low={low} and high={high}")
        self.low, self.high = low, high

    def hard_loss(self, prediction: Prediction, batch: dict[str, Tensor]) -> Float[Tensor, " b"]:
        """Squared error."""
        return (self.decode(prediction) - batch["labels"].float()).square()

    def soft_loss(
        self,
        student: Prediction,
        teacher: Prediction,
        batch: dict[str, Tensor],
        temperature: float = 1.0,
    ) -> Float[Tensor, " b"]:
        """Squared distance of the two answers; a temperature has no meaning here and is ignored."""
        del batch, temperature
        return (self.decode(student) - self.decode(teacher)).square()

    def decode(self, prediction: Prediction) -> Float[Tensor, " b"]:
        """The number itself, not clipped to the range."""
        return prediction.logits.float().squeeze(-1)

    def _metric(self, name: str) -> Metric:
        match name:
            case "pearson":
                return PearsonCorrCoef()
            case "spearman":
                with warnings.catch_warnings():  # it keeps all answers, which are few numbers here
                    warnings.filterwarnings("ignore", "Metric `SpearmanCorrcoef` will save all")
                    return SpearmanCorrCoef()
        raise ValueError(f"Regression has no metric {name!r}; choose from pearson, spearman")


def task_named(name: str) -> Task:
    """The task that a benchmark publishes under ``name``.

    Raises:
        ValueError: No benchmark has it; the message lists all names.

    >>> task_named("mrpc").metric_names
    ('accuracy', 'f1')
    """
    from lightning_kd.data import BENCHMARKS  # the data modules import this one

    tasks = {key: task for benchmark in BENCHMARKS for key, task in benchmark.tasks.items()}
    if name not in tasks:
        raise ValueError(f"there is no task {name!r}; choose from {', '.join(sorted(tasks))}")
    return tasks[name]


__all__ = ["Classification", "Prediction", "Regression", "Task", "task_named"]
