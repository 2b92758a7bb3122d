"""One answer to an example: a class or a number."""

import math
import warnings
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryF1Score,
    MatthewsCorrCoef,
    MulticlassAccuracy,
)
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from lightning_kd.functional import kd_loss
from lightning_kd.tasks.base import Prediction, Task


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


__all__ = ["Classification", "Regression"]
