"""Images from files: CIFAR's python pickles as published, and ``.npz`` folders."""

import io
import pickle
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

__all__ = ["LabelledImages", "check_names", "read_names", "read_npz", "read_pickles"]


@dataclass(frozen=True)
class LabelledImages:
    """Images of one size with their classes.

    Attributes:
        pixels: ``[n, c, h, w]``, uint8.
        labels: ``[n]``, int64.
    """

    pixels: np.ndarray
    labels: np.ndarray


def read_pickles(paths: Sequence[Path], label_key: str, num_labels: int) -> LabelledImages:
    """All images of CIFAR's batch files, in their order.

    The files hold a dictionary with ``data`` ``[n, 3072]`` (all red values of an image, then green,
    then blue) and a list of labels. They are unpickled without importing or calling anything but
    what builds a numpy array.

    Args:
        paths: Of the files.
        label_key: ``labels`` (CIFAR-10) or ``fine_labels`` (CIFAR-100).
        num_labels: How many classes there are.

    Raises:
        FileNotFoundError: One is missing.
        ValueError: One is truncated, malformed, or has a label out of range.
    """
    parts = [_batch(path, label_key, num_labels) for path in paths]
    return LabelledImages(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def _batch(path: Path, label_key: str, num_labels: int) -> LabelledImages:
    content = _unpickle(path)
    for key in ("data", label_key):
        if key not in content:
            raise ValueError(f"{path} has no {key!r}, only {', '.join(sorted(content))}")
    data, labels = content["data"], content[label_key]
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (3072,)):
        raise ValueError(f"{path}: data must be bytes [n, 3072], found {_described(data)}")
    return _checked(path, data.reshape(-1, 3, 32, 32), np.asarray(labels), num_labels)


def read_npz(path: Path, num_channels: int, num_labels: int) -> LabelledImages:
    """The images of an ``.npz`` file: ``images`` uint8 ``[n, h, w, c]`` and ``labels`` ``[n]``.

    Args:
        path: Of the file.
        num_channels: That the images must have.
        num_labels: How many classes there are.

    Raises:
        ValueError: It is truncated, malformed, or has a label out of range.
    """
    content = _arrays(path, ("images", "labels"))
    for key in ("images", "labels"):
        if key not in content:
            raise ValueError(f"{path} has no {key!r}")
    images = content["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != num_channels:
        raise ValueError(
            f"{path}: images must be uint8 [n, h, w, {num_channels}], found {_described(images)}"
        )
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return _checked(path, pixels, content["labels"], num_labels)


def read_names(path: Path, key: str) -> list[str]:
    """Names of the classes: ``key`` of CIFAR's meta file or an ``.npz``; [] where it has none.

    Raises:
        ValueError: The file is truncated or malformed.
    """
    content = _arrays(path, (key,)) if path.suffix == ".npz" else _unpickle(path)
    names: Any = content.get(key, [])
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def check_names(path: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise `ValueError` where a file names other classes, or names them in another order."""
    if found and list(found) != list(wanted):
        raise ValueError(
            f"{path} has the classes {', '.join(found[:10])}, expected {', '.join(wanted[:10])}"
            f"{' and so on' if len(wanted) > 10 else ''}, in this order"
        )


def _checked(path: Path, pixels: np.ndarray, labels: np.ndarray, count: int) -> LabelledImages:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(pixels):
        raise ValueError(
            f"{path}: {len(pixels)} images need as many whole numbers as labels, found "
            f"{_described(labels)}"
        )
    if len(labels) == 0:
        raise ValueError(f"{path} has no images")
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong):
        raise ValueError(
            f"{path}, image {wrong[0]}: label {labels[wrong[0]]} is not in 0..{count - 1}"
        )
    return LabelledImages(pixels, labels.astype(np.int64))


def _arrays(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of these names that the file has."""
    try:
        # opened here: of a damaged file numpy would leave it open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in keys if key in archive}
    except (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no whole .npz file ({_first_line(error)})") from error


def _unpickle(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; it needs all the published CIFAR files")
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise any
        raise ValueError(f"{path} is no CIFAR batch file ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no dictionary but {_described(content)}")  # noqa: TRY004
    # Python 2 wrote byte strings
    return {key.decode() if isinstance(key, bytes) else str(key): v for key, v in content.items()}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds dictionaries, lists, numbers, strings and numpy arrays, and refuses all else."""

    @override
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not loaded")
        return _ALLOWED[module, name]


_reconstruct: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # up to numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
