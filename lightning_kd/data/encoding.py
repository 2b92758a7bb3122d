"""From text to token numbers, once: tokenizing, the cache file, and padding into batches.

Token numbers lie flat in one Arrow file per split, which is mapped into memory: all processes and
workers share one copy, and an example is a slice.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from lightning_kd.fingerprints import content_key

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT_VERSION = 1
"""Part of every cache key: raise it when the cache file is written differently."""

Row = dict[str, Any]
_LISTS = ("input_ids", "token_type_ids", "answer_mask", "char_begin", "char_end")
_SCALARS = ("idx", "labels", "question", "choice_lengths", "prompt_lengths")


class Encoded(TorchDataset[Any]):
    """A tokenized split: `split[i]` is one example, `split[[i, j]]` a list of them.

    Args:
        path: a file that `encode` wrote.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]

        with pa.memory_map(os.fspath(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        self._flat: dict[str, np.ndarray] = {}
        for name in _LISTS:
            if name in table.column_names:
                column = table[name].chunk(0)
                self._flat[name] = column.values.to_numpy()
                self._offsets = column.offsets.to_numpy()
        self._scalars = {
            name: _array(table[name].chunk(0)) for name in _SCALARS if name in table.column_names
        }
        self.lengths: list[int] = np.diff(self._offsets).tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: Sequence[int]) -> list[Row]: ...

    def __getitem__(self, index: int | Sequence[int]) -> Row | list[Row]:
        if isinstance(index, int):
            return self._row(index)
        return self.__getitems__(index)

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Several examples; `DataLoader` asks for this."""
        return [self._row(index) for index in indices]

    def column(self, name: str) -> np.ndarray:
        """All of `idx` or `labels`, `[n]`."""
        return self._scalars[name]

    def add_column(self, name: str, values: np.ndarray) -> None:
        """Give every row one more value, `[n]`."""
        self._scalars[name] = values

    def inputs_digest(self) -> str:
        """SHA-256 of all that a model sees of the examples; labels are not part of it."""
        total = hashlib.sha256()
        for name, values in sorted({**self._flat, "offsets": self._offsets}.items()):
            total.update(name.encode() + np.ascontiguousarray(values).tobytes())
        for name in ("idx", "choice_lengths"):
            if name in self._scalars:
                total.update(np.ascontiguousarray(self._scalars[name]).tobytes())
        return total.hexdigest()

    def row_keys(self) -> int | np.ndarray:
        """One more than the largest `idx`; where examples share one, their sorted content keys."""
        idx = self._scalars["idx"]
        if len(np.unique(idx)) == len(idx):
            return int(idx.max()) + 1
        tokens = np.split(self._flat["input_ids"], self._offsets[1:-1])
        return np.unique(np.array([content_key(row) for row in tokens], dtype=np.uint64))

    def _row(self, index: int) -> Row:
        begin, end = self._offsets[index], self._offsets[index + 1]
        row: Row = {name: values[begin:end] for name, values in self._flat.items()}
        return row | {name: values[index] for name, values in self._scalars.items()}


def _array(column: Any) -> np.ndarray:
    """One number per example, or several: `[n]` or `[n, k]`."""
    width = getattr(column.type, "list_size", None)
    if width is None:
        return column.to_numpy()
    return column.flatten().to_numpy().reshape(-1, width)


class Padding:
    """Collates examples into a batch, padded to the longest of them, as the tokenizer pads.

    Args:
        tokenizer: a Hugging Face tokenizer that has a padding token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.fill = {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": tokenizer.pad_token_type_id,
            "answer_mask": False,
        }
        self.left = tokenizer.padding_side == "left"

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `token_type_ids`, `answer_mask` `[b, l]`, those there are.

        And `labels` `[b]` (`[b, 2]` for spans) and `idx` `[b]`.
        """
        lengths = [len(row["input_ids"]) for row in rows]
        shape = (len(rows), max(lengths))
        arrays = {n: np.full(shape, fill) for n, fill in self.fill.items() if n in rows[0]}
        arrays["attention_mask"] = np.zeros(shape, dtype=np.int64)
        for k, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            place = slice(shape[1] - length, None) if self.left else slice(length)
            arrays["attention_mask"][k, place] = 1
            for name in self.fill:
                if name in row:
                    arrays[name][k, place] = row[name]
        for name in ("labels", "idx"):
            if name in rows[0]:
                arrays[name] = np.array([row[name] for row in rows])
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def load_tokenizer(name: str, max_length: int) -> Any:
    """A Hugging Face tokenizer with a padding token, for examples of up to `max_length` tokens."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(Path(name).expanduser()) if name[:1] == "~" else name
        )
    except OSError as error:
        raise OSError(
            f"could not load the tokenizer {name!r} ({str(error).splitlines()[0]}); give a local "
            "folder, such as the one `lightning-kd assets` makes"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2 has none; padding is masked anyway
    if tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer {name!r} has neither a padding nor an end token; set its pad_token and "
            "save it"
        )
    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_length must be at most the {tokenizer.model_max_length} tokens that {name!r} is "
            f"made for, got {max_length}"
        )
    return tokenizer


def encode(
    make: "Callable[[], Dataset]", tokenize: "Callable[[Dataset], Any]", path: Path
) -> Encoded:
    """Tokenize a split, or read it back when the cache file is there.

    Args:
        make: gives the examples; called only when they have to be tokenized.
        tokenize: makes an Arrow table of them, as the function of that name does.
        path: the cache file, named by everything that its content depends on. It appears whole or
            not at all, and several processes may write the same one.
    """
    if not path.exists():
        table = tokenize(make())
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{path.stem[:16]}-", dir=path.parent)
        try:
            _write(table, handle)
            Path(scratch).replace(path)
        except BaseException:
            Path(scratch).unlink()
            raise
    return Encoded(path)


def tokenize(examples: "Dataset", tokenizer: Any, max_length: int) -> Any:
    """An Arrow table with a row per example: `input_ids`, `idx`, and what else there is.

    Args:
        examples: with columns `sentence1`, `sentence2` (pairs), `idx`, `label` (if any).
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens kept of each example, special ones included.
    """
    import pyarrow as pa

    pieces: dict[str, list[np.ndarray]] = {}
    lengths: list[int] = []
    for chunk in examples.iter(batch_size=1000):
        # All of it said explicitly: a tokenizer.json may ask for a fixed length (MiniLM's does).
        encoding = tokenizer(
            chunk["sentence1"],
            chunk.get("sentence2"),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
        )
        lengths += [len(ids) for ids in encoding["input_ids"]]
        for name in _LISTS:
            if name in encoding:
                flat = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in encoding[name]])
                pieces.setdefault(name, []).append(flat)
    offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int32))
    columns = {
        name: pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(flats)))
        for name, flats in pieces.items()
    }
    columns["idx"] = pa.array(np.asarray(examples["idx"], dtype=np.int64))
    if "label" in examples.column_names:
        labels = np.asarray(examples["label"])
        kind = np.float32 if labels.dtype.kind == "f" else np.int64
        columns["labels"] = pa.array(labels.astype(kind))
    return pa.table(columns)


def _write(table: Any, handle: int) -> None:
    import pyarrow as pa

    with os.fdopen(handle, "wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())


def default_cache_dir() -> Path:
    """`lightning-kd` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    # an empty variable counts as unset, says the XDG specification
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-kd"


def digest(examples: "Dataset") -> str:
    """SHA-256 of a split's rows, the same on every machine."""
    total = hashlib.sha256()
    names = sorted(examples.column_names)
    for chunk in examples.iter(batch_size=1000):
        rows = zip(*(chunk[name] for name in names), strict=True)
        content = [names, [list(row) for row in rows]]
        total.update(json.dumps(content, default=bytes.hex).encode())
    return total.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what decides a tokenizer's output."""
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        # what the last call asked for, not what the tokenizer is
        content.pop("truncation", None)
        content.pop("padding", None)
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            content = {file.name: file.read_text() for file in Path(folder).iterdir()}
    sides = [tokenizer.truncation_side, tokenizer.model_input_names]
    return hashlib.sha256(json.dumps([content, sides], sort_keys=True).encode()).hexdigest()
