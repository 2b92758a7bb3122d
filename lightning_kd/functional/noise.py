r"""Label noise on tensors: drawing it, losses that bear it, and ways to select and mend labels.

Unreduced, one value per example. Letters in shapes: ``b`` any leading axes, ``c`` classes, ``n``
examples. Labels are class indices; :math:`T_{ij} = P(\tilde{y} = j \mid y = i)` is a noise matrix,
:math:`p` the probability that the student gives to the observed label.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

NoiseKind = Literal["symmetric", "uniform", "pair"]
RobustLoss = Literal["mae", "gce", "sce", "forward"]
LOG_ZERO = -4.0
"""What reverse cross-entropy takes for the logarithm of 0."""


def noise_matrix(kind: NoiseKind, rate: float, num_classes: int) -> Float[Tensor, "c c"]:
    r"""The matrix :math:`T` of a kind of noise, in double precision; each row sums to 1.

    With probability ``rate``, ``symmetric`` moves a label to one of the other classes (the code of
    co-teaching), ``pair`` to the next class, and ``uniform`` draws it anew among *all* classes, so
    that only :math:`\rho (c - 1) / c` of the labels change (the code of Meta-Weight-Net). With two
    classes ``symmetric`` and ``pair`` are the same, and ``uniform`` is half as much.

    Args:
        kind: Of the noise.
        rate: :math:`\rho \ge 0`; 0 changes nothing. Below :math:`(c - 1) / c` for ``symmetric``
            and 0.5 for ``pair``, where labels say nothing any more; at most 1 for ``uniform``.
        num_classes: At least 2.

    Raises:
        ValueError: An unknown kind, or a rate outside its range.

    >>> noise_matrix("symmetric", 0.3, 3)[0].tolist()
    [0.7, 0.15, 0.15]
    >>> noise_matrix("uniform", 0.3, 3)[0].tolist()
    [0.8, 0.1, 0.1]
    """
    if num_classes < 2:
        raise ValueError(f"label noise needs at least 2 classes, got {num_classes}")
    eye = torch.eye(num_classes, dtype=torch.float64)
    others = (1 - eye) / (num_classes - 1)
    ones = torch.ones_like(eye) / num_classes
    moved = {"symmetric": others, "uniform": ones, "pair": eye.roll(1, 1)}
    if kind not in moved:
        raise ValueError(f"there is no {kind!r} noise; choose from {', '.join(moved)}")
    end = {"symmetric": (num_classes - 1) / num_classes, "pair": 0.5, "uniform": math.inf}[kind]
    if not 0 <= rate < end or rate > 1:
        limit = "at most 1" if kind == "uniform" else f"below {end:.4g} for {num_classes} classes"
        raise ValueError(f"the rate of {kind} noise must be at least 0 and {limit}, got {rate}")
    return (1 - rate) * eye + rate * moved[kind]


def draw_noisy_labels(
    labels: Int[Tensor, " n"], matrix: Float[Tensor, "c c"], draws: Float[Tensor, "n 2"]
) -> Int[Tensor, " n"]:
    r"""Labels after noise: :math:`\tilde{y} \sim T_{y \cdot}`, from two uniform numbers each.

    The first number decides whether a label moves (it does from :math:`T_{yy}` on), the second one
    where to. With the same numbers a higher rate therefore moves all labels that a lower one does,
    to the same classes.

    Args:
        labels: The clean ones.
        matrix: Rows sum to 1.
        draws: Numbers in [0, 1), of at most 52 bits.

    >>> draws = torch.tensor([[0.69, 0.9], [0.71, 0.2], [0.71, 0.9]])
    >>> draw_noisy_labels(torch.tensor([0, 0, 0]), noise_matrix("symmetric", 0.3, 3), draws)
    tensor([0, 1, 2])
    """
    rows = matrix[labels]  # [n, c]
    stay = rows.gather(1, labels[:, None]).squeeze(1)
    elsewhere = rows.scatter(1, labels[:, None], 0.0).cumsum(1)
    total = elsewhere[:, -1:]
    # A draw is below 1, so that the target is a class with a probability: never the label itself.
    target = (elsewhere <= draws[:, 1:] * total).sum(1)
    moves = (draws[:, 0] >= stay) & (total.squeeze(1) > 0)
    return torch.where(moves, target, labels)


def mae_loss(logits: Float[Tensor, "*b c"], labels: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    r"""Half the absolute error of the probabilities, :math:`1 - p`.

    Summed over all labels it is the constant c - 1, so that symmetric noise does not move its
    minimum. Between 0 and 1; its gradient vanishes where the student is sure, even if wrong.

    >>> mae_loss(torch.tensor([0.9, 0.1]).log(), torch.tensor(1))
    tensor(0.9000)
    """
    return 1 - _probability(logits, labels)


def gce_loss(
    logits: Float[Tensor, "*b c"], labels: Int[Tensor, "*b"], q: float = 0.7
) -> Float[Tensor, "*b"]:
    r"""Generalized cross-entropy :math:`(1 - p^q) / q`.

    Args:
        logits: Of the student.
        labels: Class indices.
        q: In (0, 1]; tends to cross-entropy at 0 and is the absolute error at 1.

    Raises:
        ValueError: ``q`` outside (0, 1].

    >>> gce_loss(torch.tensor([0.9, 0.1]).log(), torch.tensor(0))
    tensor(0.1016)
    """
    if not 0 < q <= 1:
        raise ValueError(f"q must be in (0, 1], got {q}")
    return (1 - _probability(logits, labels).pow(q)) / q


def sce_loss(
    logits: Float[Tensor, "*b c"],
    labels: Int[Tensor, "*b"],
    ce_weight: float = 1.0,
    reverse_weight: float = 1.0,
) -> Float[Tensor, "*b"]:
    r"""Symmetric cross-entropy :math:`a \cdot (-\ln p) + b \cdot 4 (1 - p)`.

    The second part is the cross-entropy with label and student exchanged, where ln 0 counts as -4.

    Args:
        logits: Of the student.
        labels: Class indices.
        ce_weight: a; 0 leaves a multiple of the absolute error.
        reverse_weight: b; 0 leaves cross-entropy.

    >>> sce_loss(torch.tensor([0.9, 0.1]).log(), torch.tensor(0))
    tensor(0.5054)
    """
    log_p = logits.float().log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    return -ce_weight * log_p - reverse_weight * LOG_ZERO * (1 - log_p.exp())


def forward_loss(
    logits: Float[Tensor, "*b c"], labels: Int[Tensor, "*b"], matrix: Float[Tensor, "c c"]
) -> Float[Tensor, "*b"]:
    r"""Cross-entropy of the *noisy* prediction, :math:`-\ln (T^\top p)_{\tilde{y}}`.

    Trained with the right matrix on noisy labels, the student tends to predict clean ones.

    Args:
        logits: Of the student, for clean labels.
        labels: Noisy class indices.
        matrix: T; the identity gives cross-entropy.

    >>> logits = torch.tensor([0.9, 0.1]).log()
    >>> forward_loss(logits, torch.tensor(0), noise_matrix("symmetric", 0.2, 2))
    tensor(0.3011)
    """
    probabilities = logits.float().softmax(-1) @ matrix.to(logits.device, torch.float32)
    observed = probabilities.gather(-1, labels[..., None]).squeeze(-1)
    return -observed.clamp(min=torch.finfo(torch.float32).tiny).log()


def robust_loss(
    name: RobustLoss, noise_rate: float, num_classes: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a name as a function of logits and labels; ``forward`` for symmetric noise.

    >>> robust_loss("forward", 0.2, 2)(torch.tensor([0.9, 0.1]).log(), torch.tensor(0))
    tensor(0.3011)
    """
    if name == "forward":
        return partial(forward_loss, matrix=noise_matrix("symmetric", noise_rate, num_classes))
    return {"mae": mae_loss, "gce": gce_loss, "sce": sce_loss}[name]


def keep_rate(epoch: float, noise_rate: float, ramp_epochs: float) -> float:
    r"""Share of a batch that co-teaching keeps, :math:`R(e) = 1 - \min(\rho e / T_k, \rho)`.

    Everything at first, when nothing is memorized yet; from ``ramp_epochs`` on, the share that is
    thought to be clean. Source: Han et al. (2018); their code ramps linearly as well.

    Args:
        epoch: Epochs trained, at least 0; fractions count.
        noise_rate: :math:`\rho` in [0, 1); 0 keeps everything always.
        ramp_epochs: :math:`T_k` above 0.

    >>> [round(keep_rate(epoch, 0.4, 10.0), 2) for epoch in (0.0, 5.0, 10.0, 50.0)]
    [1.0, 0.8, 0.6, 0.6]
    """
    return 1 - min(noise_rate * epoch / ramp_epochs, noise_rate)


def small_loss(losses: Float[Tensor, " b"], rate: float) -> Bool[Tensor, " b"]:
    r"""Whether a loss is one of the :math:`k = \lceil R b \rceil` smallest; at least one is.

    Equal losses are taken in their order. Without a graph: a selection has no gradient.

    Args:
        losses: Of a batch.
        rate: R in [0, 1]; 1 selects all.

    >>> small_loss(torch.tensor([0.1, 2.3, 0.2, 1.5]), 0.5)
    tensor([ True, False,  True, False])
    """
    # R is a rounded number: 0.55 of 20 is 11, and not the 12 that 11.000000000000002 would give.
    k = max(1, math.ceil(rate * len(losses) - 1e-9))
    chosen = torch.zeros(len(losses), dtype=torch.bool, device=losses.device)
    chosen[losses.detach().float().argsort(stable=True)[:k]] = True
    return chosen


def relabel(
    labels: Int[Tensor, " b"], probabilities: Float[Tensor, "b c"], threshold: float
) -> Int[Tensor, " b"]:
    r"""The teacher's class where it is sure, :math:`\max q > t`, and the label elsewhere.

    Args:
        labels: Observed.
        probabilities: q, of a teacher that has not seen these examples.
        threshold: t; 1 and more keeps every label, 0 replaces all.

    >>> q = torch.tensor([[0.7, 0.3]])
    >>> relabel(torch.tensor([1]), q, 0.6).item(), relabel(torch.tensor([1]), q, 0.8).item()
    (0, 1)
    """
    sure, teacher = probabilities.max(-1)
    return torch.where(sure > threshold, teacher, labels)


def blended_loss(
    logits: Float[Tensor, "b c"],
    labels: Int[Tensor, " b"],
    probabilities: Float[Tensor, "b c"],
    blend: float,
) -> Float[Tensor, " b"]:
    r"""Cross-entropy to the target :math:`(1 - \beta) \mathrm{onehot}(\tilde{y}) + \beta q`.

    Equal to the same mixture of two cross-entropies, so up to a constant to distillation with
    weight ``blend`` at temperature 1.

    Args:
        logits: Of the student.
        labels: Observed.
        probabilities: q, the teacher's.
        blend: :math:`\beta` in [0, 1]; 0 is cross-entropy to the labels, 1 to the teacher.

    >>> logits, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]])
    >>> blended_loss(logits, torch.tensor([0]), q, 0.8)
    tensor([0.9842])
    """
    target = (1 - blend) * one_hot(labels, logits.shape[-1]) + blend * probabilities
    return -(target * logits.float().log_softmax(-1)).sum(-1)


def _probability(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.float().softmax(-1).gather(-1, labels[..., None]).squeeze(-1)


__all__ = [
    "NoiseKind",
    "RobustLoss",
    "blended_loss",
    "draw_noisy_labels",
    "forward_loss",
    "gce_loss",
    "keep_rate",
    "mae_loss",
    "noise_matrix",
    "relabel",
    "robust_loss",
    "sce_loss",
    "small_loss",
]
