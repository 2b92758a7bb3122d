"""Averaging weights along a training: the mean, when to take a snapshot, how fast to learn.

Sources: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization" (UAI
2018), and its use per step on pre-trained language models by Lu et al. (Findings of EMNLP 2022).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def running_mean_(means: Sequence[Tensor], values: Sequence[Tensor], count: int) -> None:
    r"""Take one more snapshot into a mean of ``count``, in place: :math:`w̄ += (w - w̄) / (n + 1)`.

    Computed in the means' own dtype, which should be single precision at least: in bfloat16 the
    increments round to nothing after a few dozen snapshots. With ``count`` 0 the values are copied,
    whatever was in the means before.

    Args:
        means: One tensor per weight; changed.
        values: The snapshot, of the same shapes; any floating dtype.
        count: Snapshots so far, n.

    Raises:
        ValueError: ``count`` is negative.

    >>> mean = torch.zeros(1)
    >>> for count, weight in enumerate([-0.5, 0.25, -0.125]):
    ...     running_mean_([mean], [torch.tensor([weight])], count)
    ...     print(mean.item())
    -0.5
    -0.125
    -0.125
    """
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    with torch.no_grad():
        if count == 0:
            for mean, value in zip(means, values, strict=True):
                mean.copy_(value)
            return
        weight = 1 / (count + 1)
        kinds = {(t.dtype, t.device) for tensors in (means, values) for t in tensors}
        if len(kinds) == 1:
            torch._foreach_lerp_(list(means), list(values), weight)
            return
        for mean, value in zip(means, values, strict=True):  # one wide copy at a time
            mean.lerp_(value.to(mean), weight)


def averaging_start(fraction: float, total: int) -> int:
    r"""Updates before averaging begins, :math:`s_0 = \lfloor f T \rfloor`.

    Args:
        fraction: f in [0, 1]; 0 averages from the first update on, 1 never.
        total: Updates of the whole training, T.

    Raises:
        ValueError: ``fraction`` is outside of [0, 1].

    >>> averaging_start(0.5, 7), averaging_start(0.29, 100)
    (3, 29)
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction must be between 0 and 1, got {fraction}")
    return math.floor(fraction * total + 1e-9)  # 0.29 * 100 is 28.999999999999996


def is_snapshot(update: int, start: int, every: int = 1) -> bool:
    r"""Whether the weights after update t belong to the mean: :math:`t > s_0`, k divides t - s_0.

    Args:
        update: t, counting from 1.
        start: :math:`s_0`.
        every: k, at least 1.

    >>> [t for t in range(1, 11) if is_snapshot(t, start=5, every=2)]
    [7, 9]
    """
    return update > start and (update - start) % every == 0


def cyclic_rate(update: int, every: int, highest: float, lowest: float) -> float:
    r"""Izmailov's cycle :math:`(1 - t) α_1 + t α_2`, :math:`t = (((i - 1) \bmod c) + 1) / c`.

    A cycle ends at the lowest rate, where the snapshot is taken; a cycle of one update is always
    there.

    Args:
        update: i, counting from 1 in the averaging phase.
        every: c, updates in a cycle.
        highest: :math:`α_1`, which the first update of a cycle is already below.
        lowest: :math:`α_2`.

    >>> [round(cyclic_rate(i, 4, 0.05, 0.01), 3) for i in range(1, 6)]
    [0.04, 0.03, 0.02, 0.01, 0.04]
    """
    way = ((update - 1) % every + 1) / every
    return (1 - way) * highest + way * lowest


def izmailov_rate(update: int, start: int, initial: float, final: float) -> float:
    """The schedule of Izmailov's code: the initial rate, a straight line, then the final rate.

    Args:
        update: Position, in the unit of ``start``.
        start: Where averaging begins; the line is between 0.5 and 0.9 of it.
        initial: Rate of the first half.
        final: Rate from 0.9 on, and of the averaging phase.

    >>> [round(izmailov_rate(epoch, 100, 0.1, 0.05), 4) for epoch in (40, 70, 95, 150)]
    [0.1, 0.075, 0.05, 0.05]
    """
    way = 1.0 if start == 0 else min(max((update / start - 0.5) / 0.4, 0.0), 1.0)
    return (1 - way) * initial + way * final


__all__ = ["averaging_start", "cyclic_rate", "is_snapshot", "izmailov_rate", "running_mean_"]
