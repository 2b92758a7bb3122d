"""What every task can do; see the package."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

NOT_INPUTS = (
    *("labels", "idx", "answer_mask", "cache_row"),
    *("num_targets", "prompt_lengths", "generate"),
)
"""Keys of a batch that are not arguments of the model."""
LOWER_IS_BETTER = ("perplexity", "ter")
"""Metrics of which the lowest value is the best; of all others it is the highest."""


def best_of(metric: str) -> Literal["min", "max"]:
    """Which of several values of a metric is the best; of a logged key its last part decides.

    A metric of a part of a benchmark (`ter_seen`) goes the way of the whole.

    >>> best_of("val/rank_4/perplexity"), best_of("accuracy"), best_of("test/ter_seen")
    ('min', 'max', 'min')
    """
    name = metric.rpartition("/")[2]
    return "min" if name in LOWER_IS_BETTER or name.startswith("ter_") else "max"


@dataclass(frozen=True)
class Prediction:
    """What a model said about a batch.

    Attributes:
        logits: ``[b, *s, c]``, unnormalized scores; a regression has one "class".
        hidden_states: One ``[b, l, d]`` per layer, embeddings first, when they were asked for.
        generated: Tokens ``[g, n]`` that follow some of the prompts, -1 after their end.
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    generated: Tensor | None = None


class Task(ABC):
    """One kind of question, with its losses and its official metrics.

    Attributes:
        name: The benchmark's name for it, as users type it.
        num_labels: Width of the last axis of the logits (of the head, where that axis is ragged).
        monitor: The metric that chooses checkpoints and sizes; `best_of` says which way.
        eval_sets: Suffixes of the evaluation sets; ``""`` is the main one.
        ragged: Whether the last axis of the logits is as long as the batch's longest example.
        auto_class: The transformers class that puts the right head on a model.
        peft_type: What PEFT calls the head, in an exported adapter; None: it has no name for it.
        weighs_examples: Whether `reduce` needs to know of the rest of the optimizer step.
        trains_head: Whether the head is the task's own and trains beside an adapter.
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_type: ClassVar[str | None] = "SEQ_CLS"
    ragged: ClassVar[bool] = False
    weighs_examples: ClassVar[bool] = False
    trains_head: ClassVar[bool] = True
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
        return Prediction(self._logits(output), output.hidden_states if hidden_states else None)

    def metrics(self) -> MetricCollection:
        """Fresh accumulators of the official metrics, keyed by name."""
        return MetricCollection({name: self._metric(name) for name in self.metric_names})

    def per_example(
        self, values: Float[Tensor, " b *s"], batch: dict[str, Tensor]
    ) -> Float[Tensor, " b"]:
        """Mean over an example's sites; these tasks have one site, so nothing is left out."""
        del batch  # tasks with padded sites read their mask from it
        return values.flatten(1).mean(1) if values.dim() > 1 else values

    def reduce(self, values: Float[Tensor, " b"], batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """The average of per-example losses that is minimized: their mean."""
        del batch  # tasks whose examples weigh unequally read it
        return values.mean()

    def truths(self, batch: dict[str, Tensor]) -> Shaped[Tensor, "b ..."]:
        """What `answers` are compared with."""
        return batch["labels"]

    def logit_mask(self, batch: dict[str, Tensor]) -> Bool[Tensor, "..."] | None:
        """Which logits stand for a possible answer, to be broadcast to them; None: all."""
        del batch  # tasks that answer with a place in the text read it
        return None

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
    def decode(self, prediction: Prediction) -> Shaped[Tensor, "b ..."]:
        """The answer itself: a class index, a real number, or two positions."""

    def answers(self, prediction: Prediction, batch: dict[str, Tensor]) -> Shaped[Tensor, "b ..."]:
        """`decode`, choosing only from logits that `logit_mask` allows."""
        mask = self.logit_mask(batch)
        if mask is not None:
            prediction = Prediction(prediction.logits.masked_fill(~mask, -torch.inf))
        return self.decode(prediction)

    def _logits(self, output: Any) -> Float[Tensor, "b ..."]:
        """The scores in a transformers output."""
        return output.logits

    @abstractmethod
    def _metric(self, name: str) -> Metric: ...


__all__ = ["LOWER_IS_BETTER", "NOT_INPUTS", "Prediction", "Task", "best_of"]
