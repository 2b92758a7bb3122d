"""How sure an exit is of its token, and from where on to trust it.

Kavehzadeh et al., "Sorted LLaMA" (Findings of EACL 2024), section on dynamic inference, use the
largest probability; margin and entropy are common alternatives.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Confidence = Literal["max_prob", "margin", "entropy"]
CONFIDENCES: tuple[str, ...] = get_args(Confidence)


def exit_confidence(
    logits: Float[Tensor, "*b c"], kind: Confidence = "max_prob"
) -> Float[Tensor, "*b"]:
    r"""How sure a softmax is, in [0, 1].

    ``max_prob`` is :math:`p_1`, ``margin`` :math:`p_1 - p_2` of the two largest, ``entropy``
    :math:`1 - H(p) / \log c`. 1 is a sure answer in all three; equal logits give :math:`1/c`, 0, 0.
    Computed in fp32 at least: bf16 has no number between 0.996 and 1.

    Args:
        logits: At least two classes.
        kind: Which of them.

    >>> logits = torch.tensor([0.0, math.log(3.0)])  # probabilities 1/4, 3/4
    >>> [round(exit_confidence(logits, kind).item(), 4) for kind in CONFIDENCES]
    [0.75, 0.5, 0.1887]
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if kind == "max_prob":
        return logits.softmax(-1).amax(-1)
    if kind == "margin":
        first, second = logits.softmax(-1).topk(2, -1).values.unbind(-1)
        return first - second
    log_probabilities = logits.log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).nansum(-1)
    return 1 - entropy / math.log(logits.shape[-1])


def agreement_threshold(
    confidence: Float[Tensor, " n"], agrees: Bool[Tensor, " n"], target: float
) -> float:
    r"""The lowest threshold above which answers agree often enough.

    The smallest :math:`\tau` with :math:`P(agrees \mid c > \tau) \ge target` on the sample, the
    inequality strict as in decoding. Infinity where even the surest answers agree too rarely.

    Args:
        confidence: Of the sample's answers, in [0, 1]; maybe none.
        agrees: Whether each is the full model's.
        target: In [0, 1]; 0 gives -1, which everything is above.

    Raises:
        ValueError: ``target`` is outside.

    >>> sure = torch.tensor([0.9, 0.8, 0.6, 0.5])
    >>> right = torch.tensor([True, True, False, True])
    >>> [round(agreement_threshold(sure, right, target), 2) for target in (1.0, 0.75, 0.0)]
    [0.6, -1.0, -1.0]
    """
    if not 0 <= target <= 1:
        raise ValueError(f"the target agreement must be in [0, 1], got {target}")
    if target == 0:
        return -1.0
    if not len(confidence):
        return math.inf
    surest, order = confidence.double().sort(descending=True)
    right = agrees[order].double().cumsum(0)
    taken = torch.arange(1, len(surest) + 1, dtype=torch.float64, device=surest.device)
    below = torch.cat([surest[1:], surest.new_tensor([-1.0])])
    # Equal confidences stand or fall together: only where the next is lower can the line be drawn.
    good = (right >= target * taken) & (below < surest)
    if not good.any():
        return math.inf
    return float(below[int(good.nonzero().max())])


__all__ = ["CONFIDENCES", "Confidence", "agreement_threshold", "exit_confidence"]
