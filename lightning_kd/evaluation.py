"""What one pass over an evaluation set collects, for one size of a model."""

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import CatMetric

from lightning_kd.tasks import Prediction, Task

Stage = Literal["validate", "test", "predict"]


class AnswerKey(Protocol):
    """Scores answers where a batch's labels cannot: texts, or several rows to one question."""

    def record(self, prediction: Prediction, batch: dict[str, Tensor]) -> Float[Tensor, "b ..."]:
        """What to keep of a batch's answers."""

    def score(
        self, idx: Int[Tensor, " n"], records: Float[Tensor, "n ..."]
    ) -> dict[str, Float[Tensor, " q"]]:
        """Every metric's value for every question, NaN where it does not apply.

        The rows come from all processes, in any order. The metric is the mean over the questions;
        a single number (0-dim) is one of all answers together, without a standard error.
        """


@runtime_checkable
class HasAnswerKeys(Protocol):
    """A data module whose answers are scored by an `AnswerKey`."""

    def answer_key(self, stage: Stage, loader: int) -> AnswerKey | None:
        """That of one loader of a stage; None: its labels are all that is needed."""


class Evaluation(nn.Module):
    """The official metrics, the answers they came from, and the seconds they cost.

    Answers are kept because a standard error needs them; processes are gathered on `compute`.

    Args:
        task: Decodes answers, and scores them against labels.
        key: Scores answers instead.
    """

    def __init__(self, task: Task, key: AnswerKey | None = None) -> None:
        super().__init__()
        self.task, self.key = task, key
        self.metrics = task.metrics()
        self.answers, self.labels = CatMetric(), CatMetric()
        # Of a diverged model, too, every answer has to stay in its row.
        self.idx, self.records = CatMetric("disable"), CatMetric("disable")
        self.scores: dict[str, Tensor] = {}
        self.seconds = 0.0
        self.values: dict[str, float] = {}

    @torch.no_grad()
    def update(self, prediction: Prediction, batch: dict[str, Tensor], seconds: float) -> None:
        """Count one batch."""
        self.seconds += seconds
        if self.key is not None:
            self.idx.update(batch["idx"])
            self.records.update(self.key.record(prediction, batch))
            return
        answers, labels = self.task.answers(prediction, batch), self.task.truths(batch)
        self.metrics.update(answers, labels)
        self.answers.update(answers)
        self.labels.update(labels)

    def compute(self) -> dict[str, float]:
        """The metrics over all processes; also kept in ``values``."""
        if self.key is not None:
            found = self.key.score(_rows(self.idx).long(), _rows(self.records))
            computed: dict[str, Any] = {k: v.nanmean() for k, v in found.items()}
            self.scores = {k: v for k, v in found.items() if v.dim()}
        else:
            computed = self.metrics.compute()
        self.values = {name: float(value) for name, value in computed.items()}
        return self.values

    def collected(self) -> tuple[Tensor, Tensor]:
        """All answers and labels, ``[n, ...]`` each, on the CPU; call it on every process.

        None where a key scored them: then a standard error comes from ``scores``.
        """
        if self.key is not None:
            return torch.empty(0), torch.empty(0)
        return _rows(self.answers), _rows(self.labels)


def _rows(metric: CatMetric) -> Tensor:
    """What was collected on all processes; a metric gives a single number without its axis."""
    rows = metric.compute().cpu()
    return rows if rows.dim() else rows[None]


__all__ = ["AnswerKey", "Evaluation", "HasAnswerKeys", "Stage"]
