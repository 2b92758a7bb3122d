"""Several texts in one row, so that no step is spent on padding."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from lightning_kd.data.base import sha256_of
from lightning_kd.data.encoding import Encoded, Row
from lightning_kd.tasks.language import IGNORED

__all__ = ["Packed", "PackedPadding", "first_fit"]


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items go into which bin: each, in order, into the first that has room for it.

    Args:
        lengths: of the items, at most ``capacity`` each.
        capacity: of a bin.

    >>> first_fit([3, 4, 2, 1, 4], 5)
    [[0, 2], [1, 3], [4]]
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"an item of length {max(lengths)} is in no bin of {capacity}")
    bins: list[list[int]] = []
    free = np.zeros(len(lengths), dtype=np.int64)
    first = 0  # those before are full
    for item, length in enumerate(lengths):
        while first < len(bins) and free[first] == 0:
            first += 1
        fits = free[first : len(bins)] >= length
        place = first + int(fits.argmax()) if fits.any() else len(bins)
        if place == len(bins):
            bins.append([])
            free[place] = capacity
        bins[place].append(item)
        free[place] -= length
    return bins


class Packed(TorchDataset[Any]):
    """A tokenized split of which a row holds several texts, one after the other.

    Texts are packed by `first_fit` in the order of the split, once and for all: what is in a row
    depends on nothing else. `idx` is the number of the row, not that of an example.

    Args:
        texts: the split, with `prompt_lengths`.
        max_length: tokens of a row.
    """

    def __init__(self, texts: Encoded, max_length: int) -> None:
        self.texts = texts
        self.bins = first_fit(texts.lengths, max_length)
        self.lengths = [sum(texts.lengths[k] for k in members) for members in self.bins]

    def __len__(self) -> int:
        return len(self.bins)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: Sequence[int]) -> list[Row]: ...

    def __getitem__(self, index: int | Sequence[int]) -> Row | list[Row]:
        if isinstance(index, int):
            return self._row(index)
        return self.__getitems__(index)

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Several rows; `DataLoader` asks for this."""
        return [self._row(index) for index in indices]

    def column(self, name: str) -> np.ndarray:
        """`idx`, `[n]`."""
        return {"idx": np.arange(len(self.bins))}[name]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum over each row's texts of a number for each text, `[n]`."""
        return np.array([values[members].sum() for members in self.bins])

    def inputs_digest(self) -> str:
        """SHA-256 of all that a model sees: the texts, and which of them are in a row."""
        return sha256_of([self.texts.inputs_digest(), self.bins])

    def row_keys(self) -> int:
        """Number of rows."""
        return len(self.bins)

    def _row(self, index: int) -> Row:
        rows = self.texts[self.bins[index]]
        lengths = [len(row["input_ids"]) for row in rows]
        return {
            "input_ids": np.concatenate([row["input_ids"] for row in rows]),
            "starts": np.cumsum([0, *lengths[:-1]]),
            "prompt_lengths": np.array([row["prompt_lengths"] for row in rows]),
            "idx": index,
        }


class PackedPadding:
    """Collates packed rows into a batch, padded on the right to the longest of them.

    There is no attention mask: `position_ids` begin anew with each text (and with the padding), by
    which transformers keeps their attention apart. A text's first token is no target, as nothing of
    its own is before it.

    Args:
        tokenizer: a Hugging Face tokenizer that has a padding token.
        mask_prompt: whether the prompts' tokens are no targets.
    """

    def __init__(self, tokenizer: Any, *, mask_prompt: bool = True) -> None:
        self.fill, self.mask_prompt = tokenizer.pad_token_id, mask_prompt

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`input_ids`, `position_ids`, `labels` `[b, l]`, `idx` `[b]`."""
        shape = len(rows), max(len(row["input_ids"]) for row in rows)
        tokens = np.full(shape, self.fill, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        positions = np.tile(np.arange(shape[1]), (shape[0], 1))
        for k, row in enumerate(rows):
            length = len(row["input_ids"])
            tokens[k, :length] = labels[k, :length] = row["input_ids"]
            for start, prompt in zip(row["starts"], row["prompt_lengths"], strict=True):
                labels[k, start : start + max(prompt if self.mask_prompt else 0, 1)] = IGNORED
                positions[k, start:] = np.arange(shape[1] - start)
            positions[k, length:] = np.arange(shape[1] - length)
        arrays = {"input_ids": tokens, "position_ids": positions, "labels": labels}
        arrays["idx"] = np.array([row["idx"] for row in rows])
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
