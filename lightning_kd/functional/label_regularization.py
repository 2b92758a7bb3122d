r"""Hand-made and taught target distributions beside the labels: one value per prediction.

A *label regularizer* mixes the one-hot label :math:`q` with a distribution :math:`r`,

.. math:: q' = (1 - \alpha) q + \alpha r, \qquad L = H(q', p),

so that :math:`\alpha` weights the regularizer. Every hand-made :math:`r` in use gives the label a
share (its *gold mass*) and the other classes equal parts of the rest, and then

.. math:: H(r, p) = H(q, p) + (1 - gold) \tfrac{c}{c - 1} (z_y - \bar z):

cross-entropy plus one linear term, which costs nothing and shows that label smoothing and
teacher-free regularization are one family with one parameter.

Letters in shapes: ``b`` any leading axes, ``c`` classes.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from lightning_kd.functional.kd import kd_loss


def label_smoothing_gold(num_classes: int, over: str = "all") -> float:
    r"""Gold mass of label smoothing's :math:`r`: :math:`1 / c`, or 0 over the wrong classes alone.

    ``all`` is the paper's convention and PyTorch's ``label_smoothing``; ``wrong`` is that of the
    Teacher-free KD code, which smooths :math:`c / (c - 1)` times as much at equal :math:`\alpha`.

    Raises:
        ValueError: Fewer than two classes, or an unknown convention.

    >>> label_smoothing_gold(4), label_smoothing_gold(4, "wrong")
    (0.25, 0.0)
    """
    _check_classes(num_classes)
    if over not in ("all", "wrong"):
        raise ValueError(f"over must be all or wrong, got {over!r}")
    return 1 / num_classes if over == "all" else 0.0


def softened_gold(gold: float, num_classes: int, temperature: float) -> float:
    r"""Gold mass of :math:`softmax(p^d / \tau)`, the target of the Teacher-free KD code.

    That code applies a softmax to *probabilities*, so the result is close to uniform for every
    ``gold`` and every :math:`\tau \ge 1`.

    Args:
        gold: Gold mass of :math:`p^d` in [0, 1].
        num_classes: At least 2.
        temperature: :math:`\tau > 0`; as it grows the result tends to :math:`1 / c`.

    Raises:
        ValueError: A value outside of its range.

    >>> softened_gold(0.99, 3, 20.0)
    0.34437
    """
    _check_classes(num_classes)
    _check_share("gold", gold)
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    wrong = (1 - gold) / (num_classes - 1)
    return 1 / (1 + (num_classes - 1) * math.exp((wrong - gold) / temperature))


def gold_target(
    labels: Int[Tensor, "*b"], num_classes: int, gold: float
) -> Float[Tensor, "*b {num_classes}"]:
    r""":math:`r`: ``gold`` on the label, :math:`(1 - gold) / (c - 1)` on every other class.

    Args:
        labels: Class indices.
        num_classes: At least 2.
        gold: In [0, 1]; 1 is the one-hot label, :math:`1 / c` the uniform distribution.

    Raises:
        ValueError: A value outside of its range.

    >>> gold_target(torch.tensor(0), 3, 0.9)
    tensor([0.9000, 0.0500, 0.0500])
    """
    _check_classes(num_classes)
    _check_share("gold", gold)
    wrong = (1 - gold) / (num_classes - 1)
    return wrong + (gold - wrong) * one_hot(labels, num_classes).float()


def mixed_target(
    labels: Int[Tensor, "*b"], regularizing: Float[Tensor, "*b c"], alpha: float
) -> Float[Tensor, "*b c"]:
    r"""The effective target :math:`q' = (1 - \alpha) q + \alpha r`.

    Args:
        labels: Class indices.
        regularizing: :math:`r`, distributions.
        alpha: Weight of :math:`r` in [0, 1]; 0 is the one-hot label.

    Raises:
        ValueError: ``alpha`` outside of [0, 1].

    >>> mixed_target(torch.tensor(0), torch.tensor([0.25, 0.75]), 0.2)
    tensor([0.8500, 0.1500])
    """
    _check_share("alpha", alpha)
    return (1 - alpha) * one_hot(labels, regularizing.shape[-1]) + alpha * regularizing


def label_gap(
    logits: Float[Tensor, "*b c"],
    labels: Int[Tensor, "*b"],
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "*b"]:
    r""":math:`\tfrac{c}{c - 1} (z_y - \bar z)`: the label's logit above the mean of the others.

    The linear term of every hand-made target. Computed in fp32.

    Args:
        logits: :math:`z`.
        labels: :math:`y`; of a negative one the value has no meaning and has to be left out.
        mask: Logits that stand for a class, broadcast to all; None counts every one.

    >>> label_gap(torch.tensor([1.0, 0.0, -1.0]), torch.tensor(0))
    tensor(1.5000)
    """
    logits = logits.float()
    own = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    if mask is None:
        return own - (logits.sum(-1) - own) / max(logits.shape[-1] - 1, 1)
    mask = mask.expand_as(logits)
    others = logits.masked_fill(~mask, 0.0).sum(-1) - own
    return own - others / (mask.sum(-1) - 1).clamp(min=1)


def label_smoothing_loss(
    logits: Float[Tensor, "*b c"],
    labels: Int[Tensor, "*b"],
    alpha: float = 0.1,
    over: str = "all",
) -> Float[Tensor, "*b"]:
    r"""Label smoothing (Szegedy et al., 2016): :math:`H((1 - \alpha) q + \alpha u, p)`.

    Args:
        logits: :math:`z`.
        labels: Class indices.
        alpha: In [0, 1]; 0 is cross-entropy, 1 ignores the labels (with ``over="all"``).
        over: ``all`` or ``wrong``, see `label_smoothing_gold`.

    Raises:
        ValueError: A value outside of its range, or fewer than two classes.

    >>> label_smoothing_loss(torch.tensor([1.0, 0.0, -1.0]), torch.tensor(0), 0.1)
    tensor(0.5076)
    """
    _check_share("alpha", alpha)
    gold = label_smoothing_gold(logits.shape[-1], over)
    return _cross_entropy(logits, labels) + alpha * (1 - gold) * label_gap(logits, labels)


def tf_reg_loss(
    logits: Float[Tensor, "*b c"],
    labels: Int[Tensor, "*b"],
    alpha: float = 0.1,
    gold: float = 0.9,
    form: str = "mixture",
) -> Float[Tensor, "*b"]:
    r"""Teacher-free regularization (Yuan et al., 2020) with :math:`r = p^d`, see `gold_target`.

    The ``mixture`` form is :math:`H((1 - \alpha) q + \alpha p^d, p)`, the ``kl`` form
    :math:`(1 - \alpha) H(q, p) + \alpha KL(p^d \| p)`: lower by the constant
    :math:`\alpha H(p^d)`, equal in gradient.

    Args:
        logits: :math:`z`.
        labels: Class indices.
        alpha: Weight of :math:`p^d` in [0, 1]; 0 is cross-entropy.
        gold: Share of the label in :math:`p^d`, in [0, 1]; 1 is cross-entropy.
        form: ``mixture`` or ``kl``.

    Raises:
        ValueError: A value outside of its range, or fewer than two classes.

    >>> tf_reg_loss(torch.tensor([1.0, 0.0, -1.0]), torch.tensor(0), 0.1, 0.99)
    tensor(0.4091)
    """
    _check_share("alpha", alpha)
    _check_share("gold", gold)
    _check_classes(logits.shape[-1])
    if form not in ("mixture", "kl"):
        raise ValueError(f"form must be mixture or kl, got {form!r}")
    loss = _cross_entropy(logits, labels) + alpha * (1 - gold) * label_gap(logits, labels)
    return loss if form == "mixture" else loss - alpha * gold_entropy(gold, logits.shape[-1])


def gold_entropy(gold: float, num_classes: int) -> float:
    r""":math:`H(r)` of the distribution of `gold_target`, in nats; :math:`0 \log 0 = 0`.

    >>> gold_entropy(0.99, 3)
    0.06293
    """
    return torch.special.entr(gold_target(torch.tensor(0), num_classes, gold)).sum().item()


def teacher_free_code_loss(
    logits: Float[Tensor, "*b c"],
    labels: Int[Tensor, "*b"],
    gold: float = 0.99,
    temperature: float = 20.0,
) -> Float[Tensor, "*b"]:
    r"""The regularizer as the Teacher-free KD code computes it, for comparison with that code.

    :math:`KL(softmax(p^d / \tau) \| p) / c`: its target is practically uniform (`softened_gold`),
    the student is not softened, there is no :math:`\tau^2`, and the mean over a batch also divides
    by the number of classes, for which a multiplier between 1 and 100 makes up there.

    Args:
        logits: :math:`z`.
        labels: Class indices.
        gold: Share of the label in :math:`p^d`, in [0, 1].
        temperature: :math:`\tau > 0`.

    Raises:
        ValueError: A value outside of its range, or fewer than two classes.

    >>> teacher_free_code_loss(torch.tensor([1.0, 0.0, -1.0]), torch.tensor(0))
    tensor(0.0976)
    """
    num_classes = logits.shape[-1]
    soft = softened_gold(gold, num_classes, temperature)
    return tf_reg_loss(logits, labels, 1.0, soft, "kl") / num_classes


def taught_loss(
    student: Float[Tensor, "*b c"],
    teacher: Float[Tensor, "*b c"],
    labels: Int[Tensor, "*b"],
    alpha: float = 0.5,
    temperature: float = 1.0,
    tau_squared: bool = True,
) -> Float[Tensor, "*b"]:
    r"""KD and self-KD: :math:`(1 - \alpha) H(q, p) + \alpha\, c\, KL(p^t_\tau \| p_\tau)`.

    The hard term is always taken at :math:`\tau = 1`.

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher, or of a fine-tuned copy of the student (self-KD).
        labels: Class indices.
        alpha: Weight of the teacher in [0, 1]; 0 is cross-entropy, 1 ignores the labels.
        temperature: :math:`\tau > 0`.
        tau_squared: Whether :math:`c` is :math:`\tau^2` (Hinton et al.) or 1.

    Raises:
        ValueError: A value outside of its range.

    >>> z = torch.tensor([1.0, 0.0, -1.0])
    >>> taught_loss(z, torch.tensor([2.0, 0.0, 0.0]), torch.tensor(0), 0.3)
    tensor(0.3038)
    """
    _check_share("alpha", alpha)
    soft = kd_loss(student, teacher, temperature)
    soft = soft if tau_squared else soft / temperature**2
    return (1 - alpha) * _cross_entropy(student, labels) + alpha * soft


def confidence(
    logits: Float[Tensor, "*b c"],
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    r"""Largest probability :math:`\max_k p_k` and entropy :math:`H(p)` in nats.

    What the regularizers move, in different directions: smoothing lowers confidence, a teacher
    hands its own on. Logits that are no answer should be very low or minus infinity.

    >>> [round(float(v), 4) for v in confidence(torch.tensor([1.0, 0.0, -1.0]))]
    [0.6652, 0.8324]
    """
    probabilities = logits.float().softmax(-1)
    return probabilities.amax(-1), torch.special.entr(probabilities).sum(-1)


def _cross_entropy(logits: Float[Tensor, "*b c"], labels: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    rows = logits.float().reshape(-1, logits.shape[-1])
    flat = cross_entropy(rows, labels.reshape(-1), reduction="none")
    return flat.view(labels.shape)


def _check_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"a distribution over classes needs at least 2 of them, got {num_classes}")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
