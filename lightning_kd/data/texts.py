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

__all__ = ["TextPadding", "encode_prompt", "following", "tokenize_texts"]

Tokens = list[int]


def following(prompt: str, text: str) -> str:
    r"""A text as it goes on after a prompt: with a space unless there is white space already.

    >>> following("Question: who? Answer:", "Ann"), following("Answer:\n", "Ann")
    (' Ann', 'Ann')
    """
    return text if not prompt or prompt[-1].isspace() else f" {text}"


def encode_prompt(tokenizer: Any, prompt: str, *, chat: bool) -> Tokens:
    """Tokens of a prompt: as what a user says in the model's chat template, or as they are.

    What a tokenizer puts before a text (a beginning token) is there once, what it would put behind
    one is not: the text goes on.
    """
    plain = _plain(tokenizer, [_framed(tokenizer, prompt, chat=chat)])[0]
    # A template has its own beginning, and a model needs something to go on from.
    return [*([] if chat else _opening(tokenizer)), *plain] or [tokenizer.eos_token_id]


def tokenize_texts(
    examples: "Dataset", tokenizer: Any, max_length: int, *, chat: bool = False
) -> Any:
    """An Arrow table with a row per example: `input_ids`, `prompt_lengths`, `idx`.

    The text is the prompt's tokens, the target's and the end token; where prompt and target meet,
    they are the ones that the tokenizer gives to both together, if these begin with the prompt's.
    A text that is too long loses the beginning of its prompt first (not the beginning token), down
    to half of `max_length` (or what the target leaves), then the end of its target: there is always
    something to predict.

    Args:
        examples: with columns `sentence1` (the prompt), `sentence2` (the target), `idx`.
        tokenizer: a Hugging Face tokenizer with an end token.
        max_length: tokens kept of each example, at least 2.
        chat: whether prompts are put into the tokenizer's chat template.

    Raises:
        ValueError: The tokenizer has no end token.
    """
    import pyarrow as pa  # type: ignore[import-untyped]

    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end token, so that a model would "
            "never learn to stop; set its eos_token and save it"
        )
    end = tokenizer.eos_token_id
    opening = [] if chat else _opening(tokenizer)
    rows, lengths = [], []
    for chunk in examples.iter(batch_size=1000):
        prompts = [_framed(tokenizer, prompt, chat=chat) for prompt in chunk["sentence1"]]
        for plain, target in _pairs(tokenizer, prompts, chunk["sentence2"]):
            prompt = [*opening, *plain] or [end]
            prompt = _cut(prompt, len(opening), max(max_length - len(target) - 1, max_length // 2))
            lengths.append(len(prompt))
            rows.append(np.asarray([*prompt, *target, end][:max_length], dtype=np.int32))
    offsets = pa.array(np.cumsum([0, *map(len, rows)], dtype=np.int32))
    values = pa.array(np.concatenate(rows))
    return pa.table(
        {
            "input_ids": pa.ListArray.from_arrays(offsets, values),
            "prompt_lengths": pa.array(np.asarray(lengths, dtype=np.int64)),
            "idx": pa.array(np.asarray(examples["idx"], dtype=np.int64)),
        }
    )


def _framed(tokenizer: Any, prompt: str, *, chat: bool) -> str:
    if not chat:
        return prompt
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _plain(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    encoded = tokenizer(
        list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False
    )
    return list(encoded.input_ids)


def _opening(tokenizer: Any) -> Tokens:
    """The tokens that a tokenizer puts before any text."""
    (plain,), whole = _plain(tokenizer, ["a"]), list(tokenizer("a").input_ids)
    starts = range(len(whole) - len(plain) + 1)
    return whole[: next((k for k in starts if whole[k : k + len(plain)] == plain), 0)]


def _pairs(
    tokenizer: Any, prompts: Sequence[str], targets: Sequence[str]
) -> list[tuple[Tokens, Tokens]]:
    """Prompts and targets; a tokenizer may put a space before whatever it takes for a text."""
    firsts, alone = _plain(tokenizer, prompts), _plain(tokenizer, targets)
    wholes = _plain(tokenizer, [p + t for p, t in zip(prompts, targets, strict=True)])
    return [
        (first, whole[len(first) :] if whole[: len(first)] == first else target)
        for first, whole, target in zip(firsts, wholes, alone, strict=True)
    ]


def _cut(prompt: Tokens, opening: int, room: int) -> Tokens:
    """The last tokens of a prompt after its first ``opening``, ``room`` in all."""
    if len(prompt) <= room:
        return prompt
    kept = opening if opening < room else 0
    return [*prompt[:kept], *prompt[len(prompt) - room + kept :]]


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
