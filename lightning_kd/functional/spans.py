"""Which span of a text has the best start and end, and when it is better to give none."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["best_spans", "best_threshold"]


def best_spans(
    logits: Float[Tensor, "b 2 l"], keep: int = 1, max_length: int | None = None
) -> tuple[Int[Tensor, "b k 2"], Float[Tensor, "b k"]]:
    r"""The spans of largest :math:`z^{start}_i + z^{end}_j` with :math:`1 \le i \le j < i + m`.

    All pairs are compared, so nothing is lost to a beam of best starts and ends. Position 0 stands
    for "no answer" (its score is the sum of its two logits) and is in no span. Computed in fp32.

    Args:
        logits: Of starts and of ends; ``-inf`` where neither may be.
        keep: :math:`k`, the number of spans, best first, at least 1. Where there are fewer, the
            rest score ``-inf``.
        max_length: :math:`m`, the most tokens of a span, at least 1; None allows any.

    Returns:
        Positions of the first and last token, and scores.

    Raises:
        ValueError: ``keep`` or ``max_length`` is below 1.

    >>> logits = torch.tensor([[[9.0, 0.0, 2.0, 1.0], [9.0, 3.0, 0.0, 1.0]]])
    >>> best_spans(logits, keep=2)
    (tensor([[[1, 1],
             [2, 3]]]), tensor([[3., 3.]]))
    """
    length = logits.shape[-1]
    width = length if max_length is None else min(max_length, length)
    if keep < 1 or width < 1:
        raise ValueError(f"keep and max_length must be at least 1, got {keep} and {max_length}")
    start, end = logits.float().unbind(1)
    # row i holds the ends i, i+1, ...: [b, l, m]
    ends = pad(end, (0, width - 1), value=-torch.inf).unfold(1, width, 1)
    pairs = start[:, :, None] + ends
    pairs[:, 0] = -torch.inf
    flat = pairs.flatten(1)
    scores, places = flat.topk(min(keep, flat.shape[1]))
    first = places // width
    last = (first + places % width).clamp(max=length - 1)  # beyond the text only at -inf
    missing = keep - scores.shape[1]
    spans = pad(torch.stack([first, last], -1), (0, 0, 0, missing))
    return spans, pad(scores, (0, missing), value=-torch.inf)


def best_threshold(
    margin: Float[Tensor, " q"], answered: Float[Tensor, " q"], unanswered: Float[Tensor, " q"]
) -> float:
    r"""The :math:`t` for which not answering where ``margin`` exceeds it scores best in the mean.

    Only the margins themselves are tried, and a number below all of them (never answer): between
    two of them nothing changes. Of equally good ones the lowest is taken.

    Args:
        margin: By how much "no answer" scores higher than the best span; questions whose margin is
            not finite are left out.
        answered: What a question is worth with its best span given, such as its F1.
        unanswered: What it is worth with no answer given.

    Returns:
        The threshold; 0 where no margin is finite.

    >>> margin = torch.tensor([-3.0, 2.0, 1.0, 4.0])
    >>> best_threshold(margin, torch.tensor([1.0, 1, 0, 0]), torch.tensor([0.0, 0, 0, 1]))
    2.0
    """
    finite = margin.isfinite()
    margin, order = margin[finite].double().sort()
    if not len(margin):
        return 0.0
    gains = (answered - unanswered)[finite][order].double().cumsum(0)
    last = torch.cat([margin[1:] > margin[:-1], margin.new_ones(1, dtype=torch.bool)])
    thresholds = torch.cat([margin[:1] - 1, margin[last]])  # equal margins share their fate
    totals = torch.cat([gains.new_zeros(1), gains[last]])
    return float(thresholds[totals.argmax()])
