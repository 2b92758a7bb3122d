"""Handwritten digits out of scikit-learn's wheel, as ``.npz`` files; see `lightning_kd.assets`."""

import gzip
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

__all__ = ["digits_test", "unpack_digits"]

_TEST_SHARE: Final = 0.2


def unpack_digits(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Write ``digits_train.npz`` and ``digits_test.npz``, as the `CIFAR` data module reads them."""
    raw = gzip.decompress(wheel.read("sklearn/datasets/data/digits.csv.gz"))
    table = np.loadtxt(io.BytesIO(raw), delimiter=",")  # 64 grey values and the digit
    images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, -1].astype(np.int64)
    held = digits_test(images, labels)
    for split, chosen in (("train", ~held), ("test", held)):
        np.savez_compressed(
            folder / f"digits_{split}.npz",
            images=images[chosen],
            labels=labels[chosen],
            class_names=np.array([str(digit) for digit in range(10)]),
        )
    licence = wheel.read("scikit_learn-1.7.2.dist-info/licenses/COPYING")
    (folder / "LICENSE").write_bytes(licence)


def digits_test(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which images are for the test ``[n]``: of each class a fifth, those of the lowest hashes.

    >>> images = np.arange(10, dtype=np.uint8)[:, None]
    >>> digits_test(images, np.repeat([0, 1], 5)).nonzero()[0].tolist()
    [3, 9]
    """
    keys = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(_TEST_SHARE * len(members))
        held[members[keys[members].argsort()[:count]]] = True
    return held
