"""Distillation losses on tensors, unreduced: one value per prediction.

Letters in shapes: ``b`` any leading axes, ``c`` classes.
"""

from jaxtyping import Float
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
