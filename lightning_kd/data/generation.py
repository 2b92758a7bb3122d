"""Benchmarks whose answers are texts: a prompt, and what is to follow it."""

import json
from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_kd.data.batches import ResumableLoader
from lightning_kd.data.encoding import Encoded
from lightning_kd.data.packing import Packed, PackedPadding
from lightning_kd.data.text import TextDataModule
from lightning_kd.data.text_answers import TextKey
from lightning_kd.data.texts import TextPadding, following, tokenize_texts
from lightning_kd.evaluation import Stage
from lightning_kd.metrics import check_metric
from lightning_kd.tasks import CausalLM
from lightning_kd.tasks.language import METRICS

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["GenerationDataModule", "check_template", "first_of_groups"]


class GenerationDataModule(TextDataModule, ABC):
    """One task of a benchmark of prompts and texts, for a causal language model.

    `read` gives `sentence1` (the prompt as a person writes it), `sentence2` (the text to learn) and
    `label` (`references`: all true texts), and maybe `group`: examples of one group are never on
    both sides of a holdout, and, where a benchmark has several texts to a prompt (`one_per_group`),
    an evaluation has the first of each group only.

    Args:
        task: see `BenchmarkDataModule`.
        tokenizer: see `TextDataModule`.
        data_dir: see `BenchmarkDataModule`.
        max_length: tokens of a prompt with its text; of longer ones the prompt's beginning is lost
            first.
        mask_prompt: learn the text only; false learns the prompt as well.
        chat_template: `auto` puts prompts into the tokenizer's chat template where it has one;
            `never` leaves them as they are.
        packing: put several training texts into a row of at most `max_length` tokens, each seeing
            itself alone. `batch_size` then counts rows, and a batch's `idx` are numbers of rows.
            Losses and counts of targets are those of the same texts in rows of their own.
            Evaluations are never packed.
        generate_examples: for how many examples of an evaluation a text is written and scored; 0:
            none, and there are no scores of texts. The predict stage writes all.
        options: see `TextDataModule`.
    """

    one_per_group: ClassVar[bool] = False

    def __init__(
        self,
        task: str,
        tokenizer: str,
        data_dir: str | None = None,
        max_length: int = 512,
        mask_prompt: bool = True,
        chat_template: Literal["auto", "never"] = "auto",
        packing: bool = False,
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
        if generate_examples:
            for metric in self.spec.metric_names:
                if metric not in METRICS:
                    check_metric(metric)
        self.mask_prompt, self.chat_template, self.packing = mask_prompt, chat_template, packing
        self.generate_examples = generate_examples
        self._keys: dict[Encoded, TextKey] = {}

    @property
    def chat(self) -> bool:
        """Whether prompts are put into a chat template."""
        return self.chat_template == "auto" and self.tokenizer.chat_template is not None

    def row(self, prompt: str, text: str, references: Iterable[str]) -> dict[str, Any]:
        """An example as `dataset` takes it; the text goes on where the prompt ends."""
        text = text if self.chat else following(prompt, text)
        truths = list(dict.fromkeys(references))
        return {"sentence1": prompt, "sentence2": text, "label": {"references": truths}}

    def dataset(self, rows: Sequence[dict[str, Any]]) -> "Dataset":
        """A split out of what `row` gives, maybe with a `group` and a `part` of the benchmark.

        Raises:
            ValueError: There is no row.
        """
        from datasets import Dataset

        if not rows:
            raise ValueError(
                f"a split of {self.benchmark}/{self.task} has no example; give the published files"
            )
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return Dataset.from_dict({"idx": list(range(len(rows)))} | columns)

    def complete(
        self, found: dict[str, list[Path]], wanted: Mapping[str, Sequence[str]]
    ) -> dict[str, list[Path]]:
        """The files of each split; with a holdout, a validation file alone becomes training.

        Raises:
            FileNotFoundError: One is missing; it is named.
        """
        if "train" not in found and "validation" in found and self.holdout_fraction:
            name = found["validation"][0].name
            rank_zero_warn(
                f"there is no {wanted['train'][0]} in {self.data_dir}: training on a part of "
                f"{name}, validating on the rest; such figures compare with nothing published"
            )
            rest = {s: paths for s, paths in found.items() if s != "validation"}
            return {"train": found["validation"], **rest}
        for split in ("train", "validation"):
            if split not in found and not (split == "validation" and self.holdout_fraction):
                names = " or ".join(wanted[split])
                raise FileNotFoundError(
                    f"{self.data_dir} has no {names}; point --data.data_dir at the published files "
                    "of both training and validation, or validate on a part of one by "
                    "--data.holdout_fraction 0.1"
                )
        return found

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
        return ["prompts and texts", self.max_length, self.chat]

    def _tokenize(self, examples: "Dataset") -> Any:
        return tokenize_texts(examples, self.tokenizer, self.max_length, chat=self.chat)

    @property
    @override
    def _collate(self) -> Callable[[Any], dict[str, Tensor]]:
        return TextPadding(self.tokenizer, mask_prompt=self.mask_prompt)

    @override
    def train_dataloader(self) -> ResumableLoader:
        loader = super().train_dataloader()
        if self.packing:
            loader.collate_fn = PackedPadding(self.tokenizer, mask_prompt=self.mask_prompt)
        return loader

    @override
    def _held_together(self, train: "Dataset") -> Iterable[tuple[str, ...]]:
        name = "group" if "group" in train.column_names else "sentence1"
        return [(text,) for text in train[name]]

    @override
    def _hold_out(self, train: "Dataset") -> "tuple[Dataset, Dataset]":
        kept, held = super()._hold_out(train)
        return kept, first_of_groups(held) if self.one_per_group else held

    @override
    def _targets(self, split: Encoded | Packed) -> list[int]:
        texts = split.texts if isinstance(split, Packed) else split
        first = texts.column("prompt_lengths") if self.mask_prompt else 0
        # A text's first token has nothing before it that could predict it.
        counts = np.asarray(texts.lengths) - np.maximum(first, 1)
        return (split.sums(counts) if isinstance(split, Packed) else counts).tolist()

    @override
    def _encode(self, split: "Dataset", role: str) -> Encoded | Packed:
        encoded: Encoded = super()._encode(split, role)
        if role == "train" and self.packing:
            return Packed(encoded, self.max_length)
        if role != "train":
            spec = self.spec
            assert isinstance(spec, CausalLM)  # noqa: S101 (all of `tasks` are)
            self._keys[encoded] = TextKey(spec, self._limited(split, role), self.tokenizer)
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


def check_template(template: str, name: str) -> None:
    """Refuse a template without `{name}`.

    Raises:
        ValueError: All prompts would be the same.
    """
    if f"{{{name}}}" not in template:
        raise ValueError(
            f"prompt_template has no {{{name}}}, so that all prompts would be the same; got "
            f"{template!r}"
        )


def first_of_groups(examples: "Dataset") -> "Dataset":
    """The first example of each `group`, in their order."""
    first = {group: row for row, group in reversed(list(enumerate(examples["group"])))}
    return examples.select(sorted(first.values()))
