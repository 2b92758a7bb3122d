"""Examples of several texts, one per choice: tokenizing, and padding into batches `[b, k, l]`.

In the cache file the choices of an example lie one behind the other; `choice_lengths` says where
one ends and the next begins.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_kd.data.encoding import Padding, Row, tokenize

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ChoicePadding", "tokenize_choices"]


def tokenize_choices(examples: "Dataset", tokenizer: Any, max_length: int) -> Any:
    """An Arrow table with a row per example, as `lightning_kd.data.encoding.tokenize` makes it.

    Args:
        examples: with columns `sentence1` (the context), `sentence2` (a list of k texts, as many
            for each example), `idx`, `label` (if any).
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens kept of each choice with its context, special ones included; of the two,
            the longer is cut first.

    Returns:
        `input_ids` and `token_type_ids` of all choices joined, `choice_lengths` `[k]`, `idx`,
        `labels`.
    """
    import pyarrow as pa  # type: ignore[import-untyped]

    choices = len(examples[0]["sentence2"])
    table = tokenize(_pairs(examples), tokenizer, max_length)
    ends = table["input_ids"].chunk(0).offsets.to_numpy()
    columns = {
        name: pa.ListArray.from_arrays(pa.array(ends[::choices]), table[name].chunk(0).values)
        for name in table.column_names
        if name != "idx"
    }
    lengths = pa.array(np.diff(ends).astype(np.int64))
    columns["choice_lengths"] = pa.FixedSizeListArray.from_arrays(lengths, choices)
    columns["idx"] = pa.array(np.asarray(examples["idx"], dtype=np.int64))
    if "label" in examples.column_names:
        columns["labels"] = pa.array(np.asarray(examples["label"], dtype=np.int64))
    return pa.table(columns)


class ChoicePadding:
    """Collates examples of k texts each, padded to the longest text of the batch.

    Args:
        tokenizer: a Hugging Face tokenizer that has a padding token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.padding = Padding(tokenizer)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `token_type_ids` `[b, k, l]`, `labels` and `idx` `[b]`."""
        flat = self.padding([text for row in rows for text in _texts(row)])
        batch = {name: v.view(len(rows), -1, v.shape[-1]) for name, v in flat.items()}
        for name in ("labels", "idx"):
            if name in rows[0]:
                batch[name] = torch.tensor([int(row[name]) for row in rows])
        return batch


def _texts(row: Row) -> Iterator[Row]:
    """The tokens of each choice."""
    cuts = np.cumsum(row["choice_lengths"])[:-1]
    names = [name for name in ("input_ids", "token_type_ids") if name in row]
    parts = [np.split(row[name], cuts) for name in names]
    for values in zip(*parts, strict=True):
        yield dict(zip(names, values, strict=True))


def _pairs(examples: "Dataset") -> "Dataset":
    """A row for each choice."""
    from datasets import Dataset

    contexts, choices = examples["sentence1"], examples["sentence2"]
    pairs = [(a, b) for a, texts in zip(contexts, choices, strict=True) for b in texts]
    first, second = zip(*pairs, strict=True)
    return Dataset.from_dict(
        {"sentence1": list(first), "sentence2": list(second), "idx": list(range(len(pairs)))}
    )
