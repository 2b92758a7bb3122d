"""What one pass over an evaluation set collects, for one size of a model."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import CatMetric

from lightning_kd.tasks import Prediction, Task


class Evaluation(nn.Module):
    """The official metrics, the answers they came from, and the seconds they cost.

    Answers are kept because a standard error needs them; processes are gathered on `compute`.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.metrics = task.metrics()
        self.answers, self.labels = CatMetric(), CatMetric()
        self.seconds = 0.0
        self.values: dict[str, float] = {}

    @torch.no_grad()
    def update(self, prediction: Prediction, batch: dict[str, Tensor], seconds: float) -> None:
        """Count one batch."""
        answers, labels = self.task.decode(prediction), batch["labels"]
        self.metrics.update(answers, labels)
        self.answers.update(answers)
        self.labels.update(labels)
        self.seconds += seconds

    def compute(self) -> dict[str, float]:
        """The metrics over all processes; also kept in ``values``."""
        computed: dict[str, Any] = self.metrics.compute()
        self.values = {name: float(value) for name, value in computed.items()}
        return self.values

    def collected(self) -> tuple[Tensor, Tensor]:
        """All answers and labels, ``[n]`` each, on the CPU; call it on every process."""
        return self.answers.compute().flatten().cpu(), self.labels.compute().flatten().cpu()


__all__ = ["Evaluation"]
