"""Which of a teacher's checkpoints an epoch learns from, and how small that one is shown.

Checkpoints are numbered 1..K in the order of the teacher's training; epochs count from 0. Source:
reconstructed from Pro-KD's abstract and its sibling, Annealing-KD; see `methods.pro_kd`.
"""

from typing import Literal

import torch


def checkpoint_of_epoch(epoch: int, num_epochs: int, num_checkpoints: int) -> int:
    r"""The checkpoint of a student's epoch :math:`j(e) = 1 + \lfloor e K / n \rfloor`.

    The checkpoints share the epochs as evenly as whole epochs allow; the last epoch has the last
    one, and so has any epoch beyond.

    Args:
        epoch: e, at least 0.
        num_epochs: n, at least K: with fewer, some would be left out (`evenly_kept` says which).
        num_checkpoints: :math:`K \ge 1`.

    Raises:
        ValueError: No checkpoint, fewer epochs than checkpoints, or a negative epoch.

    >>> [checkpoint_of_epoch(e, num_epochs=6, num_checkpoints=4) for e in range(6)]
    [1, 1, 2, 3, 3, 4]
    >>> [checkpoint_of_epoch(e, num_epochs=15, num_checkpoints=5) for e in range(15)]
    [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    """
    if epoch < 0:
        raise ValueError(f"epoch must be at least 0, got {epoch}")
    if not 1 <= num_checkpoints <= num_epochs:
        raise ValueError(
            f"num_checkpoints must be from 1 to num_epochs={num_epochs}, got {num_checkpoints}"
        )
    return min(1 + epoch * num_checkpoints // num_epochs, num_checkpoints)


def evenly_kept(num_checkpoints: int, kept: int) -> list[int]:
    r"""The numbers of ``kept`` of K checkpoints :math:`\lfloor i K / kept \rfloor`, i = 1..kept.

    The last of each of so many equal parts, hence always the last of all. ``kept`` of K or more
    keeps all.

    Raises:
        ValueError: ``kept`` or ``num_checkpoints`` below 1.

    >>> evenly_kept(num_checkpoints=10, kept=4)
    [2, 5, 7, 10]
    >>> evenly_kept(num_checkpoints=3, kept=5)
    [1, 2, 3]
    """
    if num_checkpoints < 1 or kept < 1:
        raise ValueError(f"at least one of one can be kept, got {kept} of {num_checkpoints}")
    kept = min(kept, num_checkpoints)
    return [i * num_checkpoints // kept for i in range(1, kept + 1)]


def checkpoint_temperature(checkpoint: int, num_checkpoints: int, max_temperature: int) -> int:
    r"""Temperature tied to a checkpoint: :math:`T_{max}` at the first, 1 at the last.

    :math:`T_j = 1 + \lfloor (K - j) (T_{max} - 1) / (K - 1) + 1/2 \rfloor`, a straight line in
    whole temperatures; with a single checkpoint 1. The last is always shown as it is.

    Args:
        checkpoint: j, from 1 to K.
        num_checkpoints: :math:`K \ge 1`.
        max_temperature: :math:`T_{max} \ge 1`; 1 is temperature 1 throughout.

    Raises:
        ValueError: A value outside of its range.

    >>> from lightning_kd.functional import smoothing_factor
    >>> temperatures = [checkpoint_temperature(j, 4, max_temperature=4) for j in (1, 2, 3, 4)]
    >>> temperatures, [smoothing_factor(float(t), 4) for t in temperatures]
    ([4, 3, 2, 1], [0.25, 0.5, 0.75, 1.0])
    >>> [checkpoint_temperature(j, 2, max_temperature=4) for j in (1, 2)]
    [4, 1]
    >>> [checkpoint_temperature(j, 20, max_temperature=10) for j in (1, 2, 3)]
    [10, 10, 9]
    """
    if not 1 <= checkpoint <= num_checkpoints:
        raise ValueError(f"checkpoint must be from 1 to {num_checkpoints}, got {checkpoint}")
    if max_temperature < 1:
        raise ValueError(f"max_temperature must be at least 1, got {max_temperature}")
    if num_checkpoints == 1:
        return 1
    intervals = num_checkpoints - 1
    # in whole numbers: floor(a / b + 1/2) = (2 a + b) // (2 b)
    rise = (num_checkpoints - checkpoint) * (max_temperature - 1)
    return 1 + (2 * rise + intervals) // (2 * intervals)


def epoch_temperature(epoch: int, num_epochs: int, max_temperature: int) -> int:
    r"""Temperature tied to an epoch :math:`\max(1, T_{max} - \lfloor e T_{max} / n \rfloor)`.

    Whole temperatures share the epochs evenly, and epochs beyond the last have 1. Source:
    Annealing-KD, where this equals the released rule if :math:`T_{max}` divides n.

    >>> [epoch_temperature(e, num_epochs=14, max_temperature=7) for e in range(14)]
    [7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1]
    """
    return max(1, max_temperature - epoch * max_temperature // num_epochs)


def visiting_order(
    num_checkpoints: int, order: Literal["forward", "reversed", "shuffled"], seed: int = 0
) -> list[int]:
    """The numbers 1..K in the order in which they are followed; ``seed`` is of ``shuffled``.

    >>> visiting_order(4, "reversed")
    [4, 3, 2, 1]
    """
    numbers = list(range(1, num_checkpoints + 1))
    if order == "shuffled":
        generator = torch.Generator().manual_seed(seed)
        return [numbers[i] for i in torch.randperm(num_checkpoints, generator=generator).tolist()]
    return numbers if order == "forward" else numbers[::-1]


__all__ = [
    "checkpoint_of_epoch",
    "checkpoint_temperature",
    "epoch_temperature",
    "evenly_kept",
    "visiting_order",
]
