"""Distillation losses on tensors, unreduced: one value per prediction.

Letters in shapes: ``b`` any leading axes, ``c`` classes.
"""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def kd_loss(
    student: Float[Tensor, "*b c"], teacher: Float[Tensor, "*b c"], temperature: float = 1.0
) -> Float[Tensor, "*b"]:
    r"""Tempered KL divergence :math:`\tau^2 KL(p_t \| p_s)`, :math:`p = softmax(z / \tau)`.

    Source: Hinton et al. (2015), section 2. Computed in fp32.

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher; no gradient is stopped here.
        temperature: :math:`\tau > 0`; 1 compares the models' own distributions, and as it grows
            the loss tends to half the squared distance of the centred logits, divided by the
            number of classes.

    Raises:
        ValueError: ``temperature`` is not positive.

    >>> import torch
    >>> kd_loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0]))
    tensor(0.3278)
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    log_student = log_softmax(student.float() / temperature, -1)
    log_teacher = log_softmax(teacher.float() / temperature, -1)
    divergence = kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return divergence * temperature**2


def logit_mse(
    student: Float[Tensor, "*b c"],
    teacher: Float[Tensor, "*b c"],
    mask: Bool[Tensor, "..."] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, "*b"]:
    r"""Squared distance of logits :math:`\sum_c (z_s - z_t)^2`, or its mean over the classes.

    Unlike a divergence of softmaxes it also sees what is the same for all classes, and a saturated
    teacher does not make it vanish. Source: Ba and Caruana (2014). Computed in fp32.

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher; no gradient is stopped here.
        mask: Logits that count, broadcast to all; None counts every one. With no class left the
            loss is 0.
        reduction: Over the last axis: ``sum``, or ``mean`` (over those that count).

    Raises:
        ValueError: Unknown reduction.

    >>> import torch
    >>> student, teacher = torch.tensor([0.3, -0.1, 0.0]), torch.tensor([2.0, -1.0, 0.0])
    >>> logit_mse(student, teacher, reduction="sum")
    tensor(3.7000)
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, got {reduction!r}")
    difference = student.float() - teacher.float()
    if mask is not None:
        mask = mask.expand_as(difference)
        difference = difference.masked_fill(~mask, 0.0)
    total = difference.square().sum(-1)
    if reduction == "sum":
        return total
    return total / (difference.shape[-1] if mask is None else mask.sum(-1).clamp(min=1))
