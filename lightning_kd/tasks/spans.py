"""An answer that is a span of the text: where it starts and where it ends."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_kd.functional import kd_loss
from lightning_kd.functional.spans import best_spans
from lightning_kd.tasks.base import Prediction, Task

METRICS = ("f1", "exact_match", "has_answer_f1", "no_answer_f1")
_NOWHERE = -1e30  # finite: in a divergence, -inf minus -inf would be no number


class SpanQA(Task):
    """Find the answer in a passage: logits ``[b, 2, l]`` of its first and its last token.

    Batches have ``labels`` ``[b, 2]``, the two positions, and ``answer_mask`` ``[b, l]``: the
    tokens of the passage, and position 0 ([CLS]), which stands for "no answer here". No other token
    has a part in any loss.

    The metrics are the benchmark's own where its data module scores texts
    (`lightning_kd.evaluation.AnswerKey`). Without one they are those of token positions, per
    window: the same but for normalizing of texts, several true answers and joining of windows.

    >>> SpanQA("squad").metric_names
    ('f1', 'exact_match')
    """

    auto_class = "AutoModelForQuestionAnswering"
    peft_type = "QUESTION_ANS"
    ragged: ClassVar[bool] = True
    num_labels = 2  # of transformers' head, whose classes are the start and the end

    def __init__(self, name: str, metrics: Sequence[str] = METRICS[:2]) -> None:
        super().__init__(name, metrics)

    def _logits(self, output: Any) -> Float[Tensor, "b 2 l"]:
        return torch.stack([output.start_logits, output.end_logits], 1)

    def logit_mask(self, batch: dict[str, Tensor]) -> Bool[Tensor, "b 1 l"]:
        """The passage and position 0."""
        if "answer_mask" not in batch:
            raise ValueError(
                f"{self.name} needs batches with answer_mask [b, l], true for the tokens of the "
                f"passage and the first; this one has {', '.join(batch)}"
            )
        return batch["answer_mask"].bool()[:, None]

    def per_example(
        self, values: Float[Tensor, " b *s"], batch: dict[str, Tensor]
    ) -> Float[Tensor, " b"]:
        """Mean over start and end ``[b, 2]``, and over the allowed tokens of ``[b, 2, l]``."""
        if values.dim() == 3:
            mask = self.logit_mask(batch)
            values = values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)
        return super().per_example(values, batch)

    def hard_loss(self, prediction: Prediction, batch: dict[str, Tensor]) -> Float[Tensor, " b"]:
        """Mean of the two cross-entropies over the allowed tokens."""
        logits = self._allowed(prediction, batch)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), reduction="none"
        )
        return losses.view(-1, 2).mean(1)  # [b*2] -> [b]

    def soft_loss(
        self,
        student: Prediction,
        teacher: Prediction,
        batch: dict[str, Tensor],
        temperature: float = 1.0,
    ) -> Float[Tensor, " b"]:
        """Mean of the two tempered KL divergences over the allowed tokens."""
        ours, theirs = self._allowed(student, batch), self._allowed(teacher, batch)
        return self.per_example(kd_loss(ours, theirs, temperature), batch)

    def decode(self, prediction: Prediction) -> Int[Tensor, "b 2"]:
        """First and last token of the best span; twice 0 where "no answer" scores higher."""
        logits = prediction.logits.float()
        spans, scores = best_spans(logits)
        answered = scores > logits[:, :, 0].sum(1, keepdim=True)
        return torch.where(answered, spans[:, 0], 0)

    def _allowed(self, prediction: Prediction, batch: dict[str, Tensor]) -> Float[Tensor, "b 2 l"]:
        return prediction.logits.float().masked_fill(~self.logit_mask(batch), _NOWHERE)

    def _metric(self, name: str) -> Metric:
        if name not in METRICS:
            raise ValueError(f"SpanQA has no metric {name!r}; choose from {', '.join(METRICS)}")
        return _PositionScore(name)


class _PositionScore(Metric):
    """Exact match or F1 of token positions, averaged over windows with, without or of any answer.

    Position 0 is "no answer": a span of its own, which no other overlaps.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, answers: Real[Tensor, "b 2"], labels: Real[Tensor, "b 2"]) -> None:
        """Count a batch of spans."""
        if self.name == "exact_match":
            values = (answers == labels).all(1).float()
        else:
            first, last = torch.maximum(answers, labels), torch.minimum(answers, labels)
            common = (last[:, 1] - first[:, 0] + 1).clamp(min=0)
            tokens = (answers[:, 1] - answers[:, 0] + 1) + (labels[:, 1] - labels[:, 0] + 1)
            values = 2.0 * common / tokens
        if self.name in ("has_answer_f1", "no_answer_f1"):
            values = values[(labels[:, 1] > 0) == (self.name == "has_answer_f1")]
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        """The mean; NaN where no window counts."""
        return self.total / self.count


__all__ = ["METRICS", "SpanQA"]
