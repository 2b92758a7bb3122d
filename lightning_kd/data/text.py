"""Benchmarks of texts: tokenized once, cached on disk, grouped by length."""

from abc import ABC
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from typing_extensions import override

from lightning_kd.data.base import BenchmarkDataModule, sha256_of, transformed
from lightning_kd.data.encoding import (
    FORMAT_VERSION,
    Encoded,
    Padding,
    default_cache_dir,
    digest,
    encode,
    load_tokenizer,
    tokenize,
    tokenizer_digest,
)
from lightning_kd.data.identity import TrainingText
from lightning_kd.data.transform import Transform

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TextDataModule"]


class TextDataModule(BenchmarkDataModule, TrainingText, ABC):
    """One task of a benchmark of texts, tokenized once.

    Args:
        task: see `BenchmarkDataModule`.
        tokenizer: Hugging Face name or folder of the tokenizer.
        data_dir: see `BenchmarkDataModule`.
        max_length: tokens kept of each example.
        group_by_length: put training examples of similar length into the same batch.
        cache_dir: of tokenized data; `None`: `lightning-kd` in `$XDG_CACHE_HOME` or `~/.cache`.
        options: see `BenchmarkDataModule`.
    """

    def __init__(
        self,
        task: str,
        tokenizer: str,
        data_dir: str | None = None,
        max_length: int = 128,
        group_by_length: bool = False,
        cache_dir: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(task, data_dir, **options)
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.tokenizer_name, self.max_length = tokenizer, max_length
        self.group_by_length = group_by_length
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer itself, with a padding token."""
        return load_tokenizer(self.tokenizer_name, self.max_length)

    @cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(self.tokenizer)

    @property
    def _tokenizing(self) -> list[Any]:
        """All settings that `_tokenize` depends on."""
        return [self.max_length]

    def _tokenize(self, examples: "Dataset") -> Any:
        """The table that `encode` keeps; see `tokenize`."""
        return tokenize(examples, self.tokenizer, self.max_length)

    @override
    def _read_in(self, examples: "Dataset", transforms: Sequence[Transform]) -> Encoded:
        key = [digest(examples), self._tokenizer_digest, *self._tokenizing, FORMAT_VERSION]
        key += [transform.fingerprint() for transform in transforms]
        path = self.cache_dir / self.benchmark / f"{sha256_of(key)}.arrow"
        return encode(lambda: transformed(examples, transforms), self._tokenize, path)

    @override
    def _held_together(self, train: "Dataset") -> Iterable[tuple[str, ...]]:
        columns = [train[name] for name in train.column_names if name.startswith("sentence")]
        return zip(*columns, strict=True)

    @override
    def _lengths(self, split: Encoded) -> list[int]:
        return split.lengths

    @property
    @override
    def _collate(self) -> Callable[[Any], dict[str, Tensor]]:
        return Padding(self.tokenizer)

    @override
    def save_processing(self, folder: Path) -> None:
        """The tokenizer."""
        self.tokenizer.save_pretrained(folder)
