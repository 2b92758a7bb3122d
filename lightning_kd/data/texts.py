"""Prompts and the texts that follow them: from examples to tokens, and to padded batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_kd.data.encoding import Row
from lightning_kd.tasks.language import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TextPadding", "encode_prompt", "tokenize_texts"]


def encode_prompt(tokenizer: Any, prompt: str, *, chat: bool) -> list[int]:
    """Tokens of a prompt: as what a user says in the model's chat template, or as they are."""
    if not chat:
        return list(tokenizer(prompt).input_ids)
    turns = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)  # the template has them


def tokenize_texts(
    examples: "Dataset", tokenizer: Any, max_length: int, *, chat: bool = False
) -> Any:
    """An Arrow table with a row per example: `input_ids`, `prompt_lengths`, `idx`.

    The text is the prompt's tokens, the target's and the end token. One that is too long loses the
    beginning of its prompt first, down to half of `max_length` (or what the target leaves), then
    the end of its target: there is always something to predict.

    Args:
        examples: with columns `sentence1` (the prompt), `sentence2` (the target), `idx`.
        tokenizer: a Hugging Face tokenizer with an end token.
        max_length: tokens kept of each example.
        chat: whether prompts are put into the tokenizer's chat template.
    """
    import pyarrow as pa  # type: ignore[import-untyped]

    rows, prompts = [], []
    for example in examples:
        prompt = encode_prompt(tokenizer, example["sentence1"], chat=chat)
        target = tokenizer(example["sentence2"], add_special_tokens=False).input_ids
        target = [*target, tokenizer.eos_token_id]
        room = max(max_length - len(target), max_length // 2)
        prompt = prompt[-room:] if room else []
        prompts.append(len(prompt))
        rows.append(np.asarray([*prompt, *target][:max_length], dtype=np.int32))
    offsets = pa.array(np.cumsum([0, *map(len, rows)], dtype=np.int32))
    values = pa.array(np.concatenate(rows))
    return pa.table(
        {
            "input_ids": pa.ListArray.from_arrays(offsets, values),
            "prompt_lengths": pa.array(np.asarray(prompts, dtype=np.int64)),
            "idx": pa.array(np.asarray(examples["idx"], dtype=np.int64)),
        }
    )


class TextPadding:
    """Collates texts into a batch, padded on the right to the longest of them.

    Args:
        tokenizer: a Hugging Face tokenizer that has a padding token.
        mask_prompt: whether the prompt's tokens are no targets.
    """

    def __init__(self, tokenizer: Any, *, mask_prompt: bool = True) -> None:
        self.fill, self.mask_prompt = tokenizer.pad_token_id, mask_prompt

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels` `[b, l]`, `prompt_lengths`, `idx` `[b]`.

        And `generate` `[b]` where the rows have it.
        """
        shape = len(rows), max(len(row["input_ids"]) for row in rows)
        tokens = np.full(shape, self.fill, dtype=np.int64)
        mask, labels = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        for k, row in enumerate(rows):
            length = len(row["input_ids"])
            first = row["prompt_lengths"] if self.mask_prompt else 0
            tokens[k, :length], mask[k, :length] = row["input_ids"], 1
            labels[k, first:length] = row["input_ids"][first:]
        arrays = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
        for name in ("prompt_lengths", "idx", "generate"):
            if name in rows[0]:
                arrays[name] = np.array([row[name] for row in rows])
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
