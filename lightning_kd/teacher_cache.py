"""The teacher's answers on disk: each training example is asked once, by any number of runs.

A row per example, found by its ``idx``, in a file that is mapped into memory: no run holds more of
it than the batch it works on. Rows are written as they are first needed, so that a cache costs no
pass of its own and one that was cut off is gone on with. A *fingerprint* says what the answers are
answers to; a cache for anything else is refused.
"""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from lightning_kd.checkpoint_io import write_atomically

__all__ = [
    "TeacherCache",
    "TrainingRows",
    "content_key",
    "content_keys",
    "fingerprint_of",
    "open_cache",
]

FORMAT_VERSION = "1"
Batch = Mapping[str, Tensor]


@runtime_checkable
class TrainingRows(Protocol):
    """What a data module says of its training examples, for their answers to be kept."""

    @property
    def train_identity(self) -> dict[str, str]:
        """By name, everything that the model's inputs depend on."""

    @property
    def train_keys(self) -> int | np.ndarray:
        """One more than the largest ``idx``; or, where examples share one, `content_keys`.

        A batch may name other rows than ``idx``, as ``cache_row``: of several views of an example.
        """

    @property
    def train_width(self) -> int:
        """The most tokens (or other places) that an example has."""

    @property
    def augments(self) -> bool:
        """Whether an example looks different every time: then nothing can be kept."""


class TeacherCache:
    """Logits of a teacher, one row per training example.

    Args:
        folder: Holds ``header.json``, ``logits.bin`` and ``sums.bin`` (a checksum per row; 0 where
            there is no row yet).
        fingerprint: What the answers depend on, by name.
        keys: The number of rows, which ``idx`` counts; or sorted content keys (`content_keys`).
        width: Size that a ragged last axis is stored with (the tokens of a text); None where all
            answers have one shape.

    Raises:
        ValueError: The folder is of another teacher, text or library (it says which), or damaged.
        OSError: The disk is full, or the folder cannot be written and is not complete.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, str],
        keys: int | np.ndarray,
        width: int | None = None,
    ) -> None:
        self.folder, self.fingerprint, self.width = folder, dict(fingerprint), width
        self.keys = keys if isinstance(keys, np.ndarray) else None
        self.rows = keys if isinstance(keys, int) else len(keys)
        self._shape: tuple[int, ...] = ()
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None
        if (folder / "header.json").exists():
            self._arrays = self._open()

    @property
    def complete(self) -> bool:
        """Whether every row is there; rows of an ``idx`` that no example has count as missing."""
        return self._arrays is not None and bool(self._arrays[1].all())

    def find(self, batch: Batch) -> Tensor | None:
        """The answers to a batch ``[b, *s, c]`` (fp32, on the CPU); None when one is missing."""
        if self._arrays is None:
            return None
        logits, sums = self._arrays
        rows = self._rows_of(batch)
        if not sums[rows].all():
            return None
        found = logits[rows]
        # A power cut may keep a row's checksum and lose the row: then it is simply asked again.
        if any(_sum(row) != total for row, total in zip(found, sums[rows], strict=True)):
            return None
        if self.width is not None:
            found = found[..., : batch["input_ids"].shape[-1]]
        return torch.from_numpy(np.ascontiguousarray(found))

    def keep(self, batch: Batch, answers: Tensor) -> None:
        """Write the answers ``[b, *s, c]`` to a batch; what is there already stays."""
        values = answers.detach().to("cpu", torch.float32).numpy()
        if self.width is not None:
            fill = [(0, 0)] * (values.ndim - 1) + [(0, self.width - values.shape[-1])]
            values = np.pad(values, fill)
        if self._arrays is None:
            self._arrays = self._create(values.shape[1:])
        logits, sums = self._arrays
        if values.shape[1:] != self._shape:
            raise ValueError(
                f"{self.folder} keeps answers of shape {self._shape}, got {values.shape[1:]}; give "
                "the cache of another task its own folder"
            )
        rows = self._rows_of(batch)
        intact = [_sum(row) == total for row, total in zip(logits[rows], sums[rows], strict=True)]
        new = ~np.array(intact)
        if not new.any():
            return
        if not sums.flags.writeable:
            raise PermissionError(
                f"{self.folder} cannot be written and lacks {int((sums == 0).sum())} of "
                f"{self.rows} answers; copy it to a folder of yours, or set teacher_cache to null"
            )
        logits[rows[new]] = values[new]
        # After the rows: a checksum is only there when its row is.
        sums[rows[new]] = [_sum(row) for row in values[new]]

    def _rows_of(self, batch: Batch) -> np.ndarray:
        if self.keys is None:
            rows = batch.get("cache_row", batch["idx"]).cpu().numpy()
            fits = (rows >= 0) & (rows < self.rows)
        else:
            wanted = content_keys(batch)
            rows = np.searchsorted(self.keys, wanted).clip(max=self.rows - 1)
            fits = self.keys[rows] == wanted
        if not fits.all():
            raise ValueError(
                f"{self.folder} has {self.rows} rows, none of them for example "
                f"{int(batch['idx'][int(np.flatnonzero(~fits)[0])])}; the data have changed"
            )
        return rows

    def _create(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Make the files, with their whole size reserved: later writes cannot run out of disk."""
        sizes = {"logits.bin": 4 * self.rows * int(np.prod(shape)), "sums.bin": 4 * self.rows}
        for name, size in sizes.items():
            try:
                _reserve(self.folder / name, size)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"no room for {size:,} bytes of the teacher's answers ({error.strerror}); "
                    "give another --model.teacher_cache, or set it to null",
                    str(self.folder / name),
                ) from error
        header = {"fingerprint": self.fingerprint, "rows": self.rows, "shape": list(shape)}
        text = json.dumps(header, indent=2).encode()
        write_atomically(lambda file: file.write(text), self.folder / "header.json")
        return self._open()

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        path = self.folder / "header.json"
        try:
            header = json.loads(path.read_text())
            theirs, rows = header["fingerprint"], header["rows"]
            self._shape = tuple(header["shape"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete the folder") from error
        if (changed := _changes(theirs, self.fingerprint)) or rows != self.rows:
            what = "; ".join(changed) or f"examples: {rows} there, {self.rows} now"
            raise ValueError(
                f"the teacher cache {self.folder} was made for something else ({what}); give this "
                "run another --model.teacher_cache, or delete that folder"
            )
        logits = self._map("logits.bin", np.dtype(np.float32), (rows, *self._shape))
        return logits, self._map("sums.bin", np.dtype(np.uint32), (rows,))

    def _map(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        path, wanted = self.folder / name, dtype.itemsize * int(np.prod(shape))
        found = path.stat().st_size if path.exists() else 0
        if found != wanted:
            raise ValueError(
                f"{path} has {found:,} of {wanted:,} bytes: it was cut off; delete {self.folder}"
            )
        return np.memmap(path, dtype, "r+" if os.access(path, os.W_OK) else "r", shape=shape)


def content_keys(batch: Batch) -> np.ndarray:
    """A 64-bit hash of each example's tokens ``[b]``, whatever the padding.

    For training sets in which examples share an ``idx``, such as augmented texts.

    >>> tokens = torch.tensor([[5, 6, 0], [5, 6, 7]])
    >>> keys = content_keys({"input_ids": tokens, "attention_mask": (tokens > 0).long()})
    >>> alone = {"input_ids": tokens[:1, :2], "attention_mask": torch.ones(1, 2)}
    >>> bool(keys[0] == content_keys(alone)[0]), bool(keys[0] == keys[1])
    (True, False)
    """
    tokens = batch["input_ids"].cpu().flatten(1).numpy()
    kept = batch["attention_mask"].cpu().flatten(1).numpy().astype(bool)
    keys = [content_key(row[mask]) for row, mask in zip(tokens, kept, strict=True)]
    return np.array(keys, dtype=np.uint64)


def content_key(tokens: np.ndarray) -> int:
    """A 64-bit hash of one example's tokens."""
    digest = hashlib.blake2b(tokens.astype(np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def fingerprint_of(teacher: nn.Module) -> str:
    """SHA-256 of a network's weights and buffers, in the order of their names."""
    total = hashlib.sha256()
    for name, value in sorted(teacher.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return total.hexdigest()


def open_cache(
    folder: Path, teacher: nn.Module, trainer: L.Trainer, *, ragged: bool = False
) -> TeacherCache:
    """The cache of a teacher's answers to the trainer's data.

    Raises:
        ValueError: The inputs are augmented at random, or the folder is of something else.
        TypeError: The data module does not say what its examples are.
    """
    import transformers

    data = vars(trainer).get("datamodule")
    if not isinstance(data, TrainingRows):
        raise TypeError(
            f"a teacher cache needs a data module of lightning_kd.data (or one with "
            f"train_identity, train_keys, train_width, augments), got {type(data).__name__}; set "
            "teacher_cache to null"
        )
    if data.augments:
        raise ValueError(
            "the training examples are augmented at random, so that no answer can be kept; set "
            "--model.teacher_cache to null or switch the augmentation off (--data.augment false)"
        )
    fingerprint = {
        "format": FORMAT_VERSION,
        "teacher": fingerprint_of(teacher),
        **data.train_identity,
        "precision": str(trainer.precision),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return TeacherCache(folder, fingerprint, data.train_keys, data.train_width if ragged else None)


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros whose blocks are allocated; one that is there is everybody's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        with contextlib.suppress(FileExistsError):  # another process was as far
            os.link(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _changes(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """What differs, in a user's words; hashes are cut to what can be told apart."""
    names = sorted({*theirs, *ours})
    values = [(name, theirs.get(name, "nothing"), ours.get(name, "nothing")) for name in names]
    return [f"{name}: {old[:12]} there, {new[:12]} now" for name, old, new in values if old != new]


def _sum(row: np.ndarray) -> int:
    """CRC-32, but never 0, which stands for "no row"."""
    return zlib.crc32(np.ascontiguousarray(row).data) or 1
