"""Wrong labels, put into a training set on purpose and the same ones every time."""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lightning_kd.data.transform import Transform
from lightning_kd.functional.noise import NoiseKind, draw_noisy_labels, noise_matrix
from lightning_kd.tasks import Classification, Task

if TYPE_CHECKING:
    from datasets import Dataset

FlipKind = NoiseKind | Literal["exact_count", "asymmetric"]
_DRAW_BITS = 48


class FlipLabels(Transform):
    """Replaces a share of the training labels by wrong ones; validation and test stay clean.

    What happens to a label is a function of (seed, ``idx``) alone: it depends neither on the order
    of the examples nor on how many there are, a teacher and a student that are trained with the
    same settings see the same wrong labels, and a higher rate flips all that a lower one does. On
    the command line::

        --data.train_transforms+=lightning_kd.data.FlipLabels --data.train_transforms.rate=0.2

    Args:
        rate: Share of labels that the noise is meant to move, at least 0. For ``uniform`` fewer are
            different afterwards; the report says how many are.
        seed: Of the noise; of its own, so that runs of several seeds can share their noise.
        kind: ``symmetric``: to each other class alike; ``uniform``: anew among all classes;
            ``pair``: to the next class; ``exact_count``: like ``symmetric``, but exactly
            ``round(rate * n)`` of n examples (which therefore do depend on n); ``asymmetric``:
            by ``matrix``. The first three: `lightning_kd.functional.noise_matrix`.
        matrix: For ``asymmetric``, in place of a rate: row i has the probabilities of what class i
            becomes.

    Raises:
        ValueError: A rate or matrix that is out of range, missing or not used, or a task whose
            labels are no classes.

    >>> FlipLabels(0.2).fingerprint()
    'FlipLabels(kind=symmetric, rate=0.2, seed=0)'
    """

    def __init__(
        self,
        rate: float | None = None,
        seed: int = 0,
        kind: FlipKind = "symmetric",
        matrix: Sequence[Sequence[float]] | None = None,
    ) -> None:
        if kind not in _KINDS:
            raise ValueError(f"there is no {kind!r} label noise; choose from {', '.join(_KINDS)}")
        wanted, given = ("matrix", rate) if kind == "asymmetric" else ("rate", matrix)
        if given is not None or (rate, matrix) == (None, None):
            raise ValueError(
                f"FlipLabels of kind {kind} takes a {wanted} and nothing else, got rate={rate} and "
                f"matrix={matrix}"
            )
        self.rate, self.seed, self.kind = rate or 0.0, seed, kind
        self.rows = None if matrix is None else [[float(p) for p in row] for row in matrix]
        self._matrix: Tensor | None = None

    @override
    def prepare(self, task: Task) -> None:
        if not isinstance(task, Classification):
            raise ValueError(  # noqa: TRY004 - the user's choice of a task, not a type in the code
                f"FlipLabels needs labels that are classes; {task.name} is a "
                f"{type(task).__name__.lower()}, so leave it out of --data.train_transforms"
            )
        self._matrix = self._transitions(task.num_labels)

    @override
    def __call__(self, examples: "Dataset") -> "Dataset":
        labels = self.flip(torch.tensor(examples["label"]), torch.tensor(examples["idx"]))
        # not add_column, which draws a bar where the examples are a part of a data set
        return type(examples).from_dict({**examples.to_dict(), "label": labels.tolist()})

    def flip(self, labels: Tensor, idx: Tensor) -> Tensor:
        """The labels ``[n]`` of the examples ``idx [n]`` after noise.

        >>> noise = FlipLabels(0.3, kind="pair")
        >>> noise.prepare(Classification("three", ("a", "b", "c")))
        >>> noise.flip(torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6))
        tensor([0, 2, 2, 1, 2, 2])
        """
        if self._matrix is None:
            raise RuntimeError("FlipLabels does not know the classes; call prepare(task) first")
        draws = torch.tensor([self._draw(i) for i in idx.tolist()], dtype=torch.float64)
        if self.kind == "exact_count":
            draws[:, 0] = self._chosen(idx, draws[:, 0])
        return draw_noisy_labels(labels, self._matrix, draws.view(-1, 2))

    @override
    def fingerprint(self) -> str:
        amount = f"rate={self.rate}" if self.rows is None else f"matrix={self.rows}"
        return f"FlipLabels(kind={self.kind}, {amount}, seed={self.seed})"

    def _transitions(self, num_classes: int) -> Tensor:
        if self.rows is None:
            match self.kind:
                case "symmetric" | "uniform" | "pair" as kind:
                    return noise_matrix(kind, self.rate, num_classes)
                case _:
                    return noise_matrix("symmetric", self.rate, num_classes)
        shape = [len(row) for row in self.rows]
        if shape != [num_classes] * num_classes:
            raise ValueError(
                f"the matrix of FlipLabels must have {num_classes} rows of {num_classes} numbers, "
                f"one per class, got rows of {shape}"
            )
        for number, row in enumerate(self.rows):
            if min(row) < 0 or not math.isclose(sum(row), 1, abs_tol=1e-6):
                raise ValueError(
                    f"row {number} of the matrix of FlipLabels must be probabilities that sum to "
                    f"1, got {row}"
                )
        return torch.tensor(self.rows, dtype=torch.float64)

    def _draw(self, idx: int) -> tuple[float, float]:
        """Two uniform numbers of an example."""
        key = hashlib.sha256(f"{self.seed}/flip/{idx}".encode()).digest()
        width = _DRAW_BITS // 8
        first, second = (int.from_bytes(key[k : k + width], "big") for k in (0, width))
        return first / 2**_DRAW_BITS, second / 2**_DRAW_BITS

    def _chosen(self, idx: Tensor, draws: Tensor) -> Tensor:
        """1 for the wanted number of examples with the largest draws, 0 for the others."""
        by_idx = dict(zip(idx.tolist(), draws.tolist(), strict=True))  # augmented texts share one
        last_first = sorted(by_idx, key=lambda i: (-by_idx[i], i))
        chosen = set(last_first[: round(self.rate * len(by_idx))])
        return torch.tensor([float(i in chosen) for i in idx.tolist()], dtype=draws.dtype)


_KINDS: tuple[str, ...] = (*get_args(NoiseKind), "exact_count", "asymmetric")

__all__ = ["FlipLabels"]
