"""Benchmarks whose answers are texts: a prompt, and what is to follow it."""

import json
from abc import ABC
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor
from typing_extensions import override

from lightning_kd.data.encoding import Encoded
from lightning_kd.data.text import TextDataModule
from lightning_kd.data.text_answers import TextKey
from lightning_kd.data.texts import TextPadding, tokenize_texts
from lightning_kd.evaluation import Stage
from lightning_kd.tasks import CausalLM

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["GenerationDataModule", "text_rows"]


class GenerationDataModule(TextDataModule, ABC):
    """One task of a benchmark of prompts and texts, for a causal language model.

    `read` gives `sentence1` (the prompt as a person writes it), `sentence2` (the text to learn) and
    `label` (`references`: all true texts), and maybe `group`: examples of one group are never on
    both sides of a holdout.

    Args:
        task: see `BenchmarkDataModule`.
        tokenizer: see `TextDataModule`.
        data_dir: see `BenchmarkDataModule`.
        max_length: tokens of a prompt with its text; of longer ones the prompt's beginning is lost
            first.
        mask_prompt: learn the text only; false learns the prompt as well.
        chat_template: `auto` puts prompts into the tokenizer's chat template where it has one;
            `never` leaves them as they are.
        generate_examples: for how many examples of an evaluation a text is written and scored; 0:
            none, and the metrics of texts are not known. The predict stage writes all.
        options: see `TextDataModule`.
    """

    def __init__(
        self,
        task: str,
        tokenizer: str,
        data_dir: str | None = None,
        max_length: int = 512,
        mask_prompt: bool = True,
        chat_template: Literal["auto", "never"] = "auto",
        generate_examples: int = 32,
        **options: Any,
    ) -> None:
        super().__init__(task, tokenizer, data_dir, max_length=max_length, **options)
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {max_length}")
        if chat_template not in ("auto", "never"):
            raise ValueError(f"chat_template must be auto or never, got {chat_template!r}")
        if generate_examples < 0:
            raise ValueError(f"generate_examples must be at least 0, got {generate_examples}")
        self.mask_prompt, self.chat_template = mask_prompt, chat_template
        self.generate_examples = generate_examples
        self._keys: dict[Encoded, TextKey] = {}

    @property
    def chat(self) -> bool:
        """Whether prompts are put into a chat template."""
        return self.chat_template == "auto" and self.tokenizer.chat_template is not None

    @property
    def submissions(self) -> list[str]:
        """One JSON object per line: `idx`, `prompt` and the `text` that was written."""
        return ["predictions.jsonl"]

    def write_predictions(self, path: Path, idx: Tensor, answers: Tensor) -> None:
        """Write the texts as JSON lines; `answers` are `TextKey.record`'s."""
        (key,) = (self._keys[split] for split in self._splits("predict").values())
        lines = []
        for number, text in key.texts(idx, answers).items():
            prompt = key.examples[key.rows[number]]["sentence1"]
            row = {"idx": number, "prompt": prompt, "text": text}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        path.write_text("".join(lines), encoding="utf-8")

    def answer_key(self, stage: Stage, loader: int) -> TextKey:
        """The true texts of a split."""
        return self._keys[list(self._splits(stage).values())[loader]]

    @property
    def _tokenizing(self) -> list[Any]:
        return ["texts", self.max_length, self.chat]

    def _tokenize(self, examples: "Dataset") -> Any:
        return tokenize_texts(examples, self.tokenizer, self.max_length, chat=self.chat)

    @property
    @override
    def _collate(self) -> Callable[[Any], dict[str, Tensor]]:
        return TextPadding(self.tokenizer, mask_prompt=self.mask_prompt)

    @override
    def _held_together(self, train: "Dataset") -> Iterable[tuple[str, ...]]:
        name = "group" if "group" in train.column_names else "sentence1"
        return [(text,) for text in train[name]]

    @override
    def _targets(self, split: Encoded) -> list[int]:
        first = split.column("prompt_lengths") if self.mask_prompt else 0
        # A text's first token has nothing before it that could predict it.
        return (np.asarray(split.lengths) - np.maximum(first, 1)).tolist()

    def _encode(self, split: "Dataset", role: str) -> Encoded:
        encoded: Encoded = super()._encode(split, role)
        if role != "train":
            spec = self.spec
            assert isinstance(spec, CausalLM)  # noqa: S101 (all of `tasks` are)
            self._keys[encoded] = TextKey(spec, self._limited(split), self.tokenizer)
            count = len(encoded) if role == "predict" else self.generate_examples
            size = self.eval_batch_size
            encoded.add_column("generate", _whole_batches(encoded.lengths, size, count))
        return encoded


def _whole_batches(lengths: Sequence[int], batch_size: int, count: int) -> np.ndarray:
    """Marks ``count`` examples, those of evenly spread batches: a text costs its batch's steps."""
    marks = np.zeros(len(lengths), dtype=bool)
    order = np.argsort(np.asarray(lengths), kind="stable")
    batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
    wanted = min(-(-count // batch_size), len(batches))
    for k in range(wanted):
        marks[batches[k * len(batches) // wanted]] = True
    surplus = np.flatnonzero(marks)[count:]
    marks[surplus] = False
    return marks


def text_rows(rows: Sequence[dict[str, Any]]) -> "Dataset":
    """A split out of rows of `sentence1`, `sentence2`, `references` and maybe `group`."""
    from datasets import Dataset

    columns = {name: [row[name] for row in rows] for name in ("sentence1", "sentence2")}
    columns["label"] = [{"references": list(row["references"])} for row in rows]
    if rows and "group" in rows[0]:
        columns["group"] = [row["group"] for row in rows]
    return Dataset.from_dict({"idx": list(range(len(rows)))} | columns)
