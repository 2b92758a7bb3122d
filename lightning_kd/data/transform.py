"""Changes to a training set: their interface, and what a report says of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lightning_kd.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset


class Examples(Protocol):
    """A split as it is trained or evaluated on."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray:
        """All of `idx` or `labels`, `[n]`."""


class Transform(ABC):
    """Changes the training set (and no other): after holdout and limit, before tokenizing."""

    def prepare(self, task: Task) -> None:  # noqa: B027 - most transforms fit every task
        """Hear which task it is, before anything is read; raise `ValueError` where it cannot be."""

    @abstractmethod
    def __call__(self, examples: "Dataset") -> "Dataset":
        """Training examples with the columns `sentence1`, `sentence2` (pairs), `label`, `idx`.

        Of images, `image` in place of the sentences: the bytes of its pixels.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that differs whenever the transform would give something else."""


def training_notes(
    transforms: Sequence[Transform], before: "Dataset", after: Examples
) -> dict[str, Any]:
    """What transforms made of a training set: counted, not what they were asked for.

    Args:
        transforms: In their order.
        before: The published examples.
        after: The examples that are trained on; those with an `idx` of `before` are compared, where
            a label is one class or score.
    """
    notes: dict[str, Any] = {
        "train_transforms": [transform.fingerprint() for transform in transforms],
        "train_examples": len(after),
    }
    if isinstance(before[0]["label"], Mapping):  # answers in a passage, of which rows are windows
        return notes
    idx, labels = after.column("idx"), after.column("labels")
    published = dict(zip(before["idx"], before["label"], strict=True))
    known = np.array([i in published for i in idx.tolist()], dtype=bool)
    clean = np.array([published[i] for i in idx[known].tolist()]).astype(labels.dtype)
    changed = int((clean != labels[known]).sum())
    return notes | {
        "labels_changed": changed,
        "observed_flip_rate": changed / max(int(known.sum()), 1),
    }


__all__ = ["Examples", "Transform", "training_notes"]
