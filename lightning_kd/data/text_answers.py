"""Scores of a language model on a split: of its predictions token by token, and of its texts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_kd.metrics import SCORERS, Scorer, base_and_part
from lightning_kd.tasks import CausalLM, Prediction
from lightning_kd.tasks.language import METRICS

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TextKey"]

_FIXED = 4
"""Numbers before the generated tokens of a record."""


class TextKey:
    """The true texts of a split.

    Args:
        task: Its `metric_names` are scored; a name such as `bleu_seen` is `bleu` of the examples
            whose `part` is `seen`.
        examples: Row `idx` for row; column `label` has the true texts (`references`).
        tokenizer: Makes texts of generated tokens.
        scorers: Of generated texts, by metric.

    Raises:
        ValueError: A metric that nobody scores.
    """

    def __init__(
        self,
        task: CausalLM,
        examples: "Dataset",
        tokenizer: Any,
        scorers: Mapping[str, Scorer] = SCORERS,
    ) -> None:
        self.task, self.tokenizer = task, tokenizer
        self.rows = {int(idx): row for row, idx in enumerate(examples["idx"])}
        self.examples = examples
        self.scorers: dict[str, tuple[Scorer, str]] = {}
        for name in task.metric_names:
            if name not in METRICS:
                base, part = base_and_part(name, scorers)
                if base not in scorers:
                    raise ValueError(
                        f"{task.name} has no metric {base!r}; choose from "
                        f"{', '.join([*METRICS, *scorers])}"
                    )
                self.scorers[name] = scorers[base], part

    def record(
        self, prediction: Prediction, batch: dict[str, Tensor]
    ) -> Float[Tensor, "b 4_plus_n"]:
        """Sum of losses, foreseen targets, targets; whether a text was written, and its tokens."""
        sums = self.task.answers(prediction, batch)
        written = sums.new_full((len(sums), 1 + self.task.max_new_tokens), -1.0)
        written[:, 0] = 0.0
        if prediction.generated is not None:
            rows = batch["generate"].nonzero().flatten()
            written[rows, 0] = 1.0
            written[rows, 1:] = prediction.generated.to(written.dtype)  # exact below 2^24
        return torch.cat([sums, written], 1)

    def score(
        self, idx: Int[Tensor, " n"], records: Float[Tensor, "n 4_plus_n"]
    ) -> dict[str, Tensor]:
        """Every metric: of token sums one value per example, of texts what its scorer gives.

        A metric of texts is missing where no text was written that it is of.

        A ratio of sums has no value per example. The ones given are its linearization at the sums,
        whose mean is the ratio and whose spread gives the ratio's standard error.
        """
        found = {}
        sums = records[:, :3].double()
        losses, right, counts = sums.T
        for name, numerators in zip(METRICS, (losses, right), strict=True):
            ratio = numerators.sum() / counts.sum()
            influence = (numerators - ratio * counts) / counts.mean()
            value = ratio.exp() if name == "perplexity" else ratio
            slope = value if name == "perplexity" else 1.0
            found[name] = value + slope * influence
        texts = self.texts(idx, records)
        rows = [self.examples[self.rows[i]] for i in texts]
        written = [
            (text, row["label"]["references"], row.get("part"))
            for text, row in zip(texts.values(), rows, strict=True)
        ]
        for name, (scorer, part) in self.scorers.items():
            kept = [(text, truths) for text, truths, x in written if not part or x == part]
            if kept:
                ours, theirs = zip(*kept, strict=True)
                found[name] = scorer(ours, theirs).double()
        return {name: found[name] for name in self.task.metric_names if name in found}

    def texts(self, idx: Int[Tensor, " n"], records: Float[Tensor, "n 4_plus_n"]) -> dict[int, str]:
        """What the model wrote, by the number of the example, in ascending order."""
        found = {}
        for example, row in sorted(zip(idx.tolist(), records.tolist(), strict=True)):
            if row[_FIXED - 1]:
                tokens = [int(token) for token in row[_FIXED:] if token >= 0]
                found[example] = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return found
