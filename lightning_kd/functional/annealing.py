"""Annealed distances of logits: a teacher that is shown small first, and a tube around it.

Sources: Jafari et al., Annealing-KD (EACL 2021) and Continuation-KD (Findings of EMNLP 2022).
"""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from lightning_kd.functional.kd import logit_mse


def smoothing_factor(temperature: float, max_temperature: int) -> float:
    r"""Multiplier of the teacher's logits :math:`\Phi(T) = 1 - (T - 1) / T_{max}`.

    It grows as the temperature falls: :math:`1 / T_{max}` at the highest temperature, 1 at
    temperature 1; linear in between, hence not :math:`1 / T`. Scaling logits keeps their order, so
    the scaled teacher is as accurate as the teacher and only less sure. Source: Annealing-KD,
    section 3; Continuation-KD, Eq. 5.

    Args:
        temperature: T, at most ``max_temperature``; below 1 (where the released schedule of
            Annealing-KD may end) the factor is above 1.
        max_temperature: :math:`T_{max} \ge 1`; 1 has no smoothing at all.

    Raises:
        ValueError: ``max_temperature`` below 1, or ``temperature`` above it.

    >>> [smoothing_factor(t, 4) for t in (4.0, 3.0, 2.0, 1.0)]
    [0.25, 0.5, 0.75, 1.0]
    """
    if max_temperature < 1:
        raise ValueError(f"max_temperature must be at least 1, got {max_temperature}")
    if temperature > max_temperature:
        raise ValueError(
            f"temperature must be at most max_temperature={max_temperature}, got {temperature}"
        )
    return 1 - (temperature - 1) / max_temperature


def annealed_logit_mse(
    student: Float[Tensor, "*b c"],
    teacher: Float[Tensor, "*b c"],
    factor: float = 1.0,
    mask: Bool[Tensor, "..."] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    center: bool = False,
) -> Float[Tensor, "*b"]:
    r"""Squared distance to the smoothed teacher :math:`\sum_c (z_s - \Phi z_t)^2`, or its mean.

    The student's logits are never scaled. Source: Annealing-KD, first case of its loss. In fp32.

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher; no gradient is stopped here.
        factor: :math:`\Phi`, of the teacher alone; 1 is plain regression of the logits, 0 draws
            the student's logits to 0.
        mask: See `logit_mse`.
        reduction: See `logit_mse`; ``sum`` is the paper's formula, ``mean`` its released code.
        center: Compare logits without their mean over the classes (see `centered`). Ours.

    >>> import torch
    >>> student, teacher = torch.tensor([0.3, -0.1, 0.0]), torch.tensor([2.0, -1.0, 0.0])
    >>> annealed_logit_mse(student, teacher, factor=0.25, reduction="sum")
    tensor(0.0625)
    """
    if center:
        student, teacher = centered(student, mask), centered(teacher, mask)
    return logit_mse(student, factor * teacher.float(), mask, reduction)


def centered(
    logits: Float[Tensor, "*b c"], mask: Bool[Tensor, "..."] | None = None
) -> Float[Tensor, "*b c"]:
    r"""Logits minus their mean over the classes (those in ``mask``), which no softmax sees.

    A single class (a regression) would always become 0. In fp32.

    >>> import torch
    >>> centered(torch.tensor([2.0, -1.0, -4.0]))
    tensor([ 3.,  0., -3.])
    """
    logits = logits.float()
    if mask is None:
        return logits - logits.mean(-1, keepdim=True)
    mask = mask.expand_as(logits)
    total = logits.masked_fill(~mask, 0.0).sum(-1, keepdim=True)
    return logits - total / mask.sum(-1, keepdim=True).clamp(min=1)


def hinge(values: Float[Tensor, "*b"], margin: float) -> Float[Tensor, "*b"]:
    r"""What is left above a margin :math:`\max(0, v - m)`; in fp32, where the two nearly cancel.

    Of squared distances it is a tube: inside there is no gradient, outside the gradient is that of
    the distance itself, not shortened. Applied to the distance of each example it leaves examples
    out one by one; applied to a mean, all or none. Source: Continuation-KD, Eq. 4.

    Args:
        values: Squared distances.
        margin: m, at least 0; 0 leaves squared distances as they are.

    Raises:
        ValueError: ``margin`` below 0.

    >>> import torch
    >>> hinge(torch.tensor([0.65, 0.995]), margin=0.8)
    tensor([0.0000, 0.1950])
    """
    if margin < 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    return (values.float() - margin).relu()


def quantile_margin(
    squared_norms: Float[Tensor, " n"],
    max_temperature: int,
    annealed: bool = True,
    quantile: float = 0.1,
) -> float:
    r"""A margin that lets an untrained student learn: a quantile of :math:`\|z_t\|^2 / T_{max}`.

    The first targets are :math:`z_t / T_{max}`. A student that answers 0 is at the squared distance
    :math:`\|z_t\|^2 / T_{max}^2` from them, and the first margin is :math:`m / T_{max}` (m where
    the margin is not annealed). This m makes the two equal at ``quantile``: at the first step that
    share of the examples is inside the tube, and all others pull. Ours; the paper names no margin.

    Args:
        squared_norms: :math:`\|z_t\|^2` of some examples, reduced as the distances are.
        max_temperature: :math:`T_{max} \ge 1`.
        annealed: Whether the margin is multiplied by the smoothing factor.
        quantile: In [0, 1]; 0 keeps even the least sure answer outside, 1 is a dead start.

    Raises:
        ValueError: No norms, or ``quantile`` outside [0, 1].

    >>> import torch
    >>> quantile_margin(torch.tensor([20.0, 20.0, 20.0]), max_temperature=10)
    2.0
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be in [0, 1], got {quantile}")
    if squared_norms.numel() == 0:
        raise ValueError("a margin needs at least one of the teacher's answers, got none")
    norm = squared_norms.double().quantile(quantile).item()
    return norm / max_temperature if annealed else norm / max_temperature**2


__all__ = ["annealed_logit_mse", "centered", "hinge", "quantile_margin", "smoothing_factor"]
