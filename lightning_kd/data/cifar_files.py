"""Where the images of the `CIFAR` data module are: published pickles, ``.npz`` folders, the Hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_kd.data.image_files import (
    LabelledImages,
    check_names,
    read_names,
    read_npz,
    read_pickles,
)
from lightning_kd.tasks import Image

__all__ = ["read_hub", "read_local"]


@dataclass(frozen=True)
class _Published:
    """How a task's python version is laid out.

    Args:
        folder: That the published archive unpacks to.
        splits: File names of the training set and the test set.
        labels: Key of the labels.
        meta: The file that names the classes.
        names: Key of the names in it.
    """

    folder: str
    splits: Mapping[str, tuple[str, ...]]
    labels: str
    meta: str
    names: str


_PUBLISHED: Mapping[str, _Published] = {
    "cifar10": _Published(
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
        "labels",
        "batches.meta",
        "label_names",
    ),
    "cifar100": _Published(
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        "fine_labels",
        "meta",
        "fine_label_names",
    ),
}


def read_local(folder: Path, task: Image) -> dict[str, LabelledImages]:
    """The ``train`` and ``test`` images of a folder.

    Raises:
        FileNotFoundError: The folder has neither the published files nor two of ``.npz``.
        ValueError: A file is damaged, or has other classes or channels than the task.
    """
    published = _PUBLISHED.get(task.name)
    for place in (folder, folder / published.folder) if published else ():
        if any((place / name).is_file() for name in published.splits["train"]):  # type: ignore[union-attr]
            return _read_published(place, task, published)  # type: ignore[arg-type]
    splits = {}
    for split in ("train", "test"):
        path = _the_npz(folder, split, task.name)
        check_names(path, read_names(path, "class_names"), task.labels)
        splits[split] = read_npz(path, task.num_channels, task.num_labels)
    return splits


def _read_published(folder: Path, task: Image, published: _Published) -> dict[str, LabelledImages]:
    meta = folder / published.meta
    check_names(meta, read_names(meta, published.names), task.labels)
    return {
        split: read_pickles([folder / name for name in names], published.labels, task.num_labels)
        for split, names in published.splits.items()
    }


def _the_npz(folder: Path, split: str, task: str) -> Path:
    files = sorted(folder.glob(f"*{split}*.npz"))
    if len(files) > 1:
        raise ValueError(
            f"{folder} has several *{split}*.npz ({', '.join(f.name for f in files)}); leave the "
            "one that is meant"
        )
    if files:
        return files[0]
    published = _PUBLISHED.get(task)
    if published is None:
        raise FileNotFoundError(
            f"{folder} has no *{split}*.npz; `lightning-kd assets digits` makes assets/digits"
        )
    raise FileNotFoundError(
        f"{folder} has neither {published.folder} nor a *{split}*.npz; point --data.data_dir at "
        f"the published files of {task}"
    )


def read_hub(task: Image) -> dict[str, LabelledImages]:
    """The ``train`` and ``test`` images of the Hugging Face Hub.

    Raises:
        ConnectionError: The Hub cannot be reached and the data are not in its cache.
        ValueError: The task is not there, or is not as expected.
    """
    from datasets import load_dataset

    if task.name not in _PUBLISHED:
        raise ValueError(
            f"{task.name} is not on the Hub; `lightning-kd assets digits` puts it into "
            "assets/digits, for --data.data_dir"
        )
    name = f"uoft-cs/{task.name}"
    try:
        found = load_dataset(name)
    except (OSError, ValueError) as error:  # ValueError: offline, and not cached
        raise ConnectionError(
            f"could not load {name!r} from the Hugging Face Hub ({str(error).splitlines()[0]}); "
            "without it, point --data.data_dir at the published CIFAR files"
        ) from error
    return {
        split: _of_hub(found[split], f"{name}, split {split}", task) for split in ("train", "test")
    }


def _of_hub(split: Any, where: str, task: Image) -> LabelledImages:
    columns = split.column_names
    images = next((name for name in ("img", "image") if name in columns), None)
    labels = next((name for name in ("fine_label", "label") if name in columns), None)
    if images is None or labels is None:
        raise ValueError(f"{where} has no images or labels among its columns {', '.join(columns)}")
    numbers = np.asarray(list(split[labels]), dtype=np.int64)
    if not ((numbers >= 0) & (numbers < task.num_labels)).all():
        raise ValueError(f"{where} has a label that is not in 0..{task.num_labels - 1}")
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in split[images]])
    return LabelledImages(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), numbers)
