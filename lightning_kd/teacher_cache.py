"""The teacher's answers on disk: each training example is asked once, by any number of runs.

A row per example, found by its ``idx``, in a file that is mapped into memory: no run holds more of
it than the batch it works on. Rows are written as they are first needed, so that a cache costs no
pass of its own and one that was cut off is gone on with. A *fingerprint* says what the answers are
answers to; a cache for anything else is refused.
"""

import contextlib
import errno
import json
import os
import socket
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from lightning_kd.fingerprints import content_key, content_keys, fingerprint_of

__all__ = [
    "TeacherCache",
    "TrainingRows",
    "content_key",
    "content_keys",
    "fingerprint_of",
    "open_cache",
]

FORMAT_VERSION = "2"
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
        header = {"fingerprint": self.fingerprint, "rows": self.rows, "shape": list(shape)}
        text = json.dumps(header, indent=2).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, size in sizes.items():
                _reserve(self.folder / name, size)
            _publish(self.folder / "header.json", lambda file: file.write(text))
        except OSError as error:
            if not (self.folder / "header.json").exists():
                for name in sizes:
                    with contextlib.suppress(OSError):
                        (self.folder / name).unlink(missing_ok=True)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise OSError(
                error.errno,
                f"{'no room' if full else 'no place'} for {sum(sizes.values()):,} bytes of the "
                f"teacher's answers ({error.strerror}); give another --model.teacher_cache, or set "
                "it to null",
                str(self.folder),
            ) from error
        return self._open()  # of who came first, who may be another teacher's

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        path = self.folder / "header.json"
        try:
            header = json.loads(path.read_text())
            theirs = {str(name): str(value) for name, value in header["fingerprint"].items()}
            rows = int(header["rows"])
            self._shape = tuple(int(size) for size in header["shape"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete {self.folder}") from error
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


def open_cache(
    folder: Path, teacher: nn.Module | str, trainer: L.Trainer, *, ragged: bool = False
) -> TeacherCache:
    """The cache of the answers of a teacher (or of the one with this fingerprint) to the data.

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
        "teacher": teacher if isinstance(teacher, str) else fingerprint_of(teacher),
        **data.train_identity,
        "precision": str(trainer.precision),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return TeacherCache(folder, fingerprint, data.train_keys, data.train_width if ragged else None)


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros whose blocks are allocated; one that is there is everybody's."""
    if path.exists() and path.stat().st_size != size:
        path.unlink()  # of a process that was killed before it wrote a header, for other data
    if not path.exists():
        _publish(path, lambda file: os.posix_fallocate(file.fileno(), 0, size))


def _publish(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Let a whole file appear under its name; where another process was faster, its own stays."""
    # Processes of several machines may share the folder, and have equal numbers.
    scratch = path.with_name(f"{path.name}.tmp-{socket.gethostname()}-{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(scratch, path)
        except OSError:  # it is there already, or the file system has no links
            if not path.exists():
                scratch.replace(path)
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
