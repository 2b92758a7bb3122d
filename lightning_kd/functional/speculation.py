"""What drafting pays: tokens and cost of a round of speculative decoding.

A round drafts K tokens with the first d of a model's L blocks and verifies them with one pass of
the rest; costs are in units of a plain step. Leviathan et al. (ICML 2023) derive the tokens per
round; the paper on Sorted LLaMA (Findings of EACL 2024) drafts with a sub-model.
"""

from collections.abc import Sequence


def tokens_per_round(acceptance: float, window: int) -> float:
    r"""Expected tokens of a round, :math:`\sum_{i=0}^{K} a^i = (1 - a^{K+1}) / (1 - a)`.

    Args:
        acceptance: Probability a that a drafted token is right when those before it are, in [0, 1].
        window: Drafted tokens K; 0 is plain decoding with 1 token per round, and a = 1 gives K + 1.

    Raises:
        ValueError: ``acceptance`` or ``window`` is out of range.

    >>> tokens_per_round(0.8, 4)
    3.3616
    """
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance must be in [0, 1], got {acceptance}")
    if window < 0:
        raise ValueError(f"window must be at least 0, got {window}")
    return sum(acceptance**i for i in range(window + 1))


def speculative_speedup(
    acceptance: float, window: int, draft_cost: float, verify_cost: float = 1.0
) -> float:
    r"""Speed beside plain decoding, :math:`\frac{(1 - a^{K+1}) / (1 - a)}{K r + v}`.

    With the draft's states and cache shared, a round costs K + 1 shallow passes and one deep pass,
    :math:`K r + r + (1 - r) = K r + 1` where a pass over K + 1 tokens takes as long as over one.

    Args:
        acceptance: See `tokens_per_round`.
        window: Drafted tokens K.
        draft_cost: r, of one drafted token, as a share of a plain step; d / L without the head.
        verify_cost: v, of everything else in a round, in plain steps; 1 where memory is the limit.

    Raises:
        ValueError: A cost is not positive.

    The paper's rejections at K = 4 with exits 12, 16 and 20 of 40, and 80 % at exit 4 of 12:

    >>> for acceptance, exit_ in ((0.63, 12), (0.69, 16), (0.74, 20)):
    ...     print(round(speculative_speedup(acceptance, 4, exit_ / 40), 2))
    1.11
    1.05
    1.0
    >>> round(speculative_speedup(0.8, 4, 4 / 12), 2)
    1.44
    """
    if draft_cost <= 0 or verify_cost <= 0:
        raise ValueError(f"costs must be positive, got {draft_cost} and {verify_cost}")
    return tokens_per_round(acceptance, window) / (window * draft_cost + verify_cost)


def best_window(
    acceptance: float, draft_cost: float, verify_cost: float = 1.0, max_window: int = 8
) -> int:
    """The window of 1 to ``max_window`` with the largest `speculative_speedup`.

    Of equals the smallest.

    >>> [best_window(acceptance, draft_cost=0.3) for acceptance in (0.2, 0.7, 0.9, 1.0)]
    [1, 2, 5, 8]
    """
    windows = range(1, max_window + 1)
    return max(windows, key=lambda k: speculative_speedup(acceptance, k, draft_cost, verify_cost))


def replayed_rounds(agrees: Sequence[bool], window: int) -> int:
    """Rounds that speculative decoding takes for tokens whose drafts are known to be right or not.

    A draft only ever continues the full model's own text, so whether it is right at a position does
    not depend on where the rounds begin: one greedy pass tells the rounds of every window.

    Args:
        agrees: For every token, whether the draft after the true text before it is the same.
        window: Drafted tokens K; 0 takes a round per token.

    >>> replayed_rounds([True, True, False, True, True, True], window=2)
    2
    >>> replayed_rounds([True, True, False, True], window=0)
    4
    """
    rounds = position = 0
    while position < len(agrees):
        ahead = agrees[position : position + window]
        position += (list(ahead).index(False) if False in ahead else len(ahead)) + 1
        rounds += 1
    return rounds


__all__ = ["best_window", "replayed_rounds", "speculative_speedup", "tokens_per_round"]
