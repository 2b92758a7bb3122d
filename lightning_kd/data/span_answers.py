"""From the spans of windows to answers in words, and their official scores."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.functional.text import squad

from lightning_kd.data.encoding import Encoded
from lightning_kd.functional.spans import best_spans, best_threshold
from lightning_kd.tasks import Prediction, SpanQA

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SpanAnswer", "SpanKey"]


@dataclass(frozen=True)
class SpanAnswer:
    """What a model answers to a question.

    Attributes:
        text: The best span in the passage's own characters; empty: there is no answer.
        choices: The best spans of all windows with their scores, highest first, no text twice;
            "no answer" is among them where it may be given.
        no_answer: By how much "no answer" scores higher than the best span.
    """

    text: str
    choices: tuple[tuple[str, float], ...]
    no_answer: float


class SpanKey:
    """Answers and true answers to the questions of one split.

    A question's answer is the best span of all its windows. "No answer" scores what it does in the
    window where it does worst, for a window without the answer says nothing of the others.

    Args:
        task: Its `metric_names` are scored.
        questions: Columns `id`, `sentence2` (passage) and, for scores, `label`.
        windows: Their windows, row `idx` for row.
        n_best: Spans kept of each window, at least 1.
        max_answer_length: Tokens of the longest span, at least 1.
        threshold: "No answer" is given where it scores higher than the best span by more than this;
            None: never.
        tuned: Called with the threshold of the best F1 by every `score`, which takes it from then
            on; None: it stays.
    """

    def __init__(
        self,
        task: SpanQA,
        questions: "Dataset",
        windows: Encoded,
        n_best: int = 20,
        max_answer_length: int = 30,
        threshold: float | None = None,
        tuned: Callable[[float], None] | None = None,
    ) -> None:
        self.task, self.questions, self.windows = task, questions, windows
        self.n_best, self.max_answer_length = n_best, max_answer_length
        self.threshold, self.tuned = threshold, tuned

    def record(
        self, prediction: Prediction, batch: dict[str, Tensor]
    ) -> Float[Tensor, "b n_plus_1 3"]:
        """First token, last token and score: of "no answer", then of the best spans."""
        logits = prediction.logits.float().masked_fill(~self.task.logit_mask(batch), -torch.inf)
        spans, scores = best_spans(logits, self.n_best, self.max_answer_length)
        none = torch.zeros_like(scores[:, :1])
        rows = torch.cat([spans.float(), scores[..., None]], -1)
        null = torch.stack([none, none, logits[:, :, 0].sum(1, keepdim=True)], -1)
        return torch.cat([null, rows], 1)

    def score(
        self, idx: Int[Tensor, " n"], records: Float[Tensor, "n k 3"]
    ) -> dict[str, Float[Tensor, " q"]]:
        """Exact match and F1 of the official script, from 0 to 1, for each question."""
        records = records[:, :2]  # the best span is enough
        found = self.answers(idx, records)
        truths = {number: self.questions[number]["label"]["text"] for number in found}
        if self.tuned is not None:
            self.threshold = self._best_threshold(found, truths)
            self.tuned(self.threshold)
            found = self.answers(idx, records)
        pairs = [_official(answer.text, truths[n]) for n, answer in found.items()]
        exact, f1 = torch.tensor(pairs, dtype=torch.float64).T
        answered = torch.tensor([bool(truths[n]) for n in found])
        values = {
            "exact_match": exact,
            "f1": f1,
            "has_answer_f1": f1.where(answered, math.nan),
            "no_answer_f1": f1.where(~answered, math.nan),
        }
        return {name: values[name] for name in self.task.metric_names}

    def answers(
        self, idx: Int[Tensor, " n"], records: Float[Tensor, "n k 3"]
    ) -> dict[int, SpanAnswer]:
        """The answer to every question that has a window among the rows, by its number."""
        nulls: dict[int, float] = {}
        spans: dict[int, list[tuple[float, int, int, int]]] = {}
        for window, rows in zip(idx.tolist(), records.tolist(), strict=True):
            question = int(self.windows[window]["question"])
            nulls[question] = min(nulls.get(question, math.inf), rows[0][2])
            spans.setdefault(question, []).extend(
                (score, window, int(first), int(last))
                for first, last, score in rows[1:]
                if score > -math.inf
            )
        return {n: self._answer(n, spans[n], nulls[n]) for n in sorted(spans)}

    def _best_threshold(
        self, found: Mapping[int, SpanAnswer], truths: Mapping[int, Sequence[str]]
    ) -> float:
        rows = []
        for n, answer in found.items():
            span = next((text for text, _ in answer.choices if text), "")
            rows.append((answer.no_answer, *(_official(text, truths[n])[1] for text in (span, ""))))
        return best_threshold(*torch.tensor(rows, dtype=torch.float64).T)

    def _answer(
        self, question: int, spans: list[tuple[float, int, int, int]], null: float
    ) -> SpanAnswer:
        passage = self.questions[question]["sentence2"]
        choices: dict[str, float] = {}
        # by score, then by place: the order in which windows arrived must not matter
        for score, window, first, last in sorted(spans, key=lambda s: (-s[0], *s[1:])):
            row = self.windows[window]
            text = passage[row["char_begin"][first] : row["char_end"][last]]
            choices.setdefault(text, score)
            if len(choices) == self.n_best:
                break
        text, best = next(iter(choices.items()), ("", -math.inf))
        margin = null - best
        if self.threshold is not None:
            choices[""] = null
            text = "" if margin > self.threshold else text
        ranked = sorted(choices.items(), key=lambda choice: -choice[1])
        return SpanAnswer(text, tuple(ranked), margin)


def _official(text: str, truths: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1, the best over the true answers; without one, the empty text is right."""
    found: dict[str, Any] = squad(
        {"prediction_text": text, "id": ""},
        {"answers": {"text": list(truths) or [""], "answer_start": [0]}, "id": ""},
    )
    return float(found["exact_match"]) / 100, float(found["f1"]) / 100
