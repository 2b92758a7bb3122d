"""One nested size per optimizer step."""

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import numpy as np
from typing_extensions import override

from lightning_kd.nested import Nested
from lightning_kd.progress import logs_now, show


def size_probabilities(
    sizes: Sequence[int],
    distribution: Literal["uniform", "geometric"] = "uniform",
    geometric_p: float = 0.5,
) -> list[float]:
    r"""How often each size is drawn.

    ``geometric`` is truncated and normalized: :math:`p_i \propto p (1 - p)^{i}` for the i-th size,
    counting from 0. As ``geometric_p`` goes to 0 it becomes uniform; at 1 only the first is drawn.

    Raises:
        ValueError: Unknown distribution, or ``geometric_p`` outside (0, 1].

    >>> [round(p, 4) for p in size_probabilities(range(1, 9), "geometric", 0.5)[:4]]
    [0.502, 0.251, 0.1255, 0.0627]
    """
    match distribution:
        case "uniform":
            weights = np.ones(len(sizes))
        case "geometric":
            if not 0 < geometric_p <= 1:
                raise ValueError(f"geometric_p must be above 0 and at most 1, got {geometric_p}")
            weights = (1 - geometric_p) ** np.arange(len(sizes), dtype=float)
        case _:
            raise ValueError(f"distribution must be uniform or geometric, got {distribution!r}")
    return [float(weight) for weight in weights / weights.sum()]


class SizeSampler(L.Callback):
    """Draws a size for each optimizer step and calls ``resize`` on the module.

    The draw is a function of (seed, optimizer step): all micro-batches of a step share it, a
    resumed run repeats it, and evaluation cannot disturb it. It works on any LightningModule
    that is `lightning_kd.nested.Nested`.

    Args:
        sizes: Sizes to draw from.
        distribution: ``uniform``, or ``geometric`` (small sizes more often).
        geometric_p: Of the geometric law, in (0, 1].
        seed: Another seed is another sequence.
        sync: ``global`` draws the same size on all processes; ``per_process`` one on each.

    Raises:
        ValueError: No sizes, or an unknown setting.
        TypeError: The module is not nested.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        distribution: Literal["uniform", "geometric"] = "uniform",
        geometric_p: float = 0.5,
        seed: int = 0,
        sync: Literal["global", "per_process"] = "global",
    ) -> None:
        if not sizes:
            raise ValueError("sizes is empty; give at least one size to draw")
        if sync not in ("global", "per_process"):
            raise ValueError(f"sync must be global or per_process, got {sync!r}")
        self.sizes = list(sizes)
        self.probabilities = size_probabilities(self.sizes, distribution, geometric_p)
        self.seed, self.sync = seed, sync

    def draw(self, step: int, process: int = 0) -> int:
        """The size of optimizer step ``step``.

        >>> [SizeSampler([1, 2, 4, 8]).draw(step) for step in range(6)]
        [4, 8, 1, 8, 8, 2]
        """
        key = [self.seed, step] if self.sync == "global" else [self.seed, step, process]
        index = np.random.default_rng(key).choice(len(self.sizes), p=self.probabilities)
        return self.sizes[int(index)]

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(pl_module, Nested):
            raise TypeError(
                f"SizeSampler needs a module that is lightning_kd.nested.Nested, "
                f"{type(pl_module).__name__} is not; give it sizes and resize()"
            )
        # global_step moves on when the optimizer has stepped, so it names the accumulation window.
        size = self.draw(trainer.global_step, trainer.global_rank)
        pl_module.resize(size)
        name = f"train/{pl_module.size_name}"
        show(trainer, name, float(size))
        if logs_now(trainer):
            pl_module.log(name, float(size), batch_size=1)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Else the module would answer at whatever size came last.
        if isinstance(pl_module, Nested):
            pl_module.resize(max(self.sizes))


__all__ = ["SizeSampler", "size_probabilities"]
