r"""Cross-entropy through a language model's head, a few rows of logits at a time.

The logits of all tokens (times all exits) are never in memory together: a chunk is multiplied out,
used and overwritten. Letters in shapes: ``n`` tokens, ``e`` states per token (exits), ``d`` hidden
width, ``V`` vocabulary. A label below 0 is not a target: its loss is 0 and has no gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_SIZE = 1024


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """What a product with ``hidden`` is computed in: autocast's type where that is on."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in: fp32, or fp64 for fp64.

    >>> sum_dtype(torch.bfloat16), sum_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def without_autocast(method: Callable[..., Any]) -> Callable[..., Any]:
    """A ``forward`` or ``backward`` whose types are its own: autocast would halve its sums."""

    @wraps(method)
    def wrapped(ctx: Any, first: Tensor, *args: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return method(ctx, first, *args)

    return wrapped


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` rows that cover ``count``.

    Raises:
        ValueError: ``size`` is below 1.

    >>> list(chunks(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    if size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {size}")
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


class Scores:
    """Logits ``[c, V]`` of successive chunks, in one buffer that its users may overwrite."""

    def __init__(self, weight: Tensor, rows: int) -> None:
        self.weight = weight
        self.buffer = weight.new_empty(rows, weight.shape[0], dtype=sum_dtype(weight.dtype))

    def __call__(self, hidden: Tensor) -> Tensor:
        """Those of ``hidden [c, d]``."""
        into = self.buffer[: hidden.shape[0]]
        if self.weight.dtype is into.dtype:
            return torch.mm(hidden, self.weight.t(), out=into)
        return into.copy_(hidden @ self.weight.t())


def _exponentials(scores: Tensor) -> tuple[Tensor, Tensor]:
    """``(sum [c, 1], log-sum-exp [c])`` of scores that become :math:`e^{z - max z}`, in place."""
    peak = scores.amax(1, keepdim=True)
    total = scores.sub_(peak).exp_().sum(1, keepdim=True)
    return total, (total.log() + peak).squeeze(1)


def _target_scores(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)


class _Unreduced(torch.autograd.Function):
    """Keeps one number per token; the backward pass multiplies the logits out again."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, size: int) -> Tensor:
        count = hidden.shape[0]
        scores_of = Scores(weight, min(size, count))
        total, losses = (hidden.new_empty(count, dtype=sum_dtype(hidden.dtype)) for _ in range(2))
        for rows in chunks(count, size):
            scores = scores_of(hidden[rows])
            wanted = _target_scores(scores, labels[rows])
            total[rows] = _exponentials(scores)[1]
            losses[rows] = total[rows] - wanted
        ctx.save_for_backward(hidden, weight, labels, total)
        ctx.size = size
        return losses.masked_fill_(labels < 0, 0.0)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(  # type: ignore[override]  # of what the decorators make less is known
        ctx: Any, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, total = ctx.saved_tensors
        upstream = upstream.masked_fill(labels < 0, 0.0)
        scores_of = Scores(weight, min(ctx.size, hidden.shape[0]))
        grads = _Gradients(hidden, weight, ctx.needs_input_grad[:2])
        for rows in chunks(hidden.shape[0], ctx.size):
            scores = scores_of(hidden[rows]).sub_(total[rows, None]).exp_()
            scores.mul_(upstream[rows, None])
            grads.add(scores, labels[rows], upstream[rows], rows)
        return grads.hidden, grads.of_weight, None, None


class _Gradients:
    """Of one hidden state and of the head, filled chunk by chunk."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, wanted: Sequence[bool], shared: Tensor | None = None
    ) -> None:
        self.states, self.weight = hidden, weight
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        # bf16 sums of many chunks would lose bits.
        self._sum = shared
        if wanted[1] and shared is None:
            self._sum = torch.zeros_like(weight, dtype=sum_dtype(weight.dtype))

    @property
    def of_weight(self) -> Tensor | None:
        """The head's, in its own type."""
        return None if self._sum is None else self._sum.to(self.weight.dtype)

    def add(self, scores: Tensor, labels: Tensor, upstream: Tensor, rows: slice) -> None:
        """Count a chunk, given upstream times softmax, which is overwritten."""
        scores.scatter_add_(1, labels.clamp(min=0)[:, None], -upstream[:, None])
        slope = scores.to(self.weight.dtype)
        if self.hidden is not None:
            torch.mm(slope, self.weight, out=self.hidden[rows])
        if self._sum is None:
            return
        if self._sum.dtype == slope.dtype:
            self._sum.addmm_(slope.t(), self.states[rows])
        else:
            self._sum.add_(slope.t() @ self.states[rows])


class _Sum(torch.autograd.Function):
    """Multiplies every chunk out once: the gradient is taken while the logits are there."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, weight: Tensor, labels: Tensor, weights: Tensor, size: int, *states: Tensor
    ) -> tuple[Tensor, Tensor]:
        count = labels.shape[0]
        scores_of = Scores(weight, min(size, count))
        needs_weight, needs_states = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        shared = torch.zeros_like(weight, dtype=sum_dtype(weight.dtype)) if needs_weight else None
        losses = weight.new_empty(len(states), count, dtype=sum_dtype(weight.dtype))
        weights = weights.to(losses.dtype).masked_fill(labels < 0, 0.0)
        kept: list[Tensor | None] = []
        for index, hidden in enumerate(states):
            grads = _Gradients(hidden, weight, (needs_states[index], needs_weight), shared)
            for rows in chunks(count, size):
                scores = scores_of(hidden[rows])
                wanted = _target_scores(scores, labels[rows])
                total, lse = _exponentials(scores)
                losses[index, rows] = lse - wanted
                factor = weights[index, rows]
                grads.add(scores.mul_(factor[:, None] / total), labels[rows], factor, rows)
            kept.append(grads.hidden)
        ctx.save_for_backward(None if shared is None else shared.to(weight.dtype), *kept)
        losses.masked_fill_(labels < 0, 0.0)
        ctx.mark_non_differentiable(losses)
        return (weights * losses).sum(), losses

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(  # type: ignore[override]  # of what the decorators make less is known
        ctx: Any, upstream: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        of_weight, *of_states = (
            None if kept is None else kept * upstream.to(kept.dtype) for kept in ctx.saved_tensors
        )
        return of_weight, None, None, None, *of_states


def linear_cross_entropy(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "V d"],
    labels: Int[Tensor, " n"],
    chunk_size: int = CHUNK_SIZE,
) -> Float[Tensor, " n"]:
    r"""Cross-entropy :math:`\log \sum_v e^{w_v h_i} - w_{y_i} h_i`, unreduced, in fp32 at least.

    Between the passes it keeps one number per token; the backward pass multiplies the logits out a
    second time, which makes it exact for whatever becomes of each token's loss. Where the weights
    of the tokens are known before, `linear_cross_entropy_sum` does without that.

    Args:
        hidden: States after the final norm.
        weight: Of the head, without bias.
        labels: Targets; below 0: none.
        chunk_size: Rows whose logits are in memory at once; 1 is the least memory, ``n`` as much
            as the plain loss.

    Raises:
        ValueError: ``chunk_size`` is below 1.

    >>> linear_cross_entropy(torch.ones(2, 1), torch.zeros(4, 1), torch.tensor([3, -100]))
    tensor([1.3863, 0.0000])
    """
    dtype = compute_dtype(hidden)
    losses: Tensor = _Unreduced.apply(  # type: ignore[no-untyped-call]
        hidden.to(dtype), weight.to(dtype), labels, chunk_size
    )
    return losses


def linear_cross_entropy_sum(
    states: Sequence[Float[Tensor, "n d"]],
    weight: Float[Tensor, "V d"],
    labels: Int[Tensor, " n"],
    weights: Float[Tensor, "e n"],
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Float[Tensor, ""], Float[Tensor, "e n"]]:
    r"""``(loss, losses)``: :math:`\sum_{e,i} c_{e,i} \ell_{e,i}`, and each :math:`\ell_{e,i}`.

    The gradient is taken chunk by chunk in the forward pass, so that no logit is computed twice:
    as many products as the plain loss. Only ``loss`` has a gradient, none in ``weights``. What it
    keeps is as large as the states and the head; with gradients off, nothing.

    Args:
        states: After the final norm, one tensor per exit.
        weight: Of the head that all exits share, without bias.
        labels: Targets, the same for all exits; below 0: none.
        weights: :math:`c`, constants.
        chunk_size: See `linear_cross_entropy`.

    Raises:
        ValueError: ``chunk_size`` is below 1, or no state is given.

    >>> states, weight = [torch.ones(2, 1), torch.ones(2, 1)], torch.zeros(4, 1)
    >>> labels, weights = torch.tensor([3, -100]), torch.full((2, 2), 0.5)
    >>> linear_cross_entropy_sum(states, weight, labels, weights)[0]
    tensor(1.3863)
    """
    if not states:
        raise ValueError("states is empty; give at least one")
    dtype = compute_dtype(states[0])
    cast = [state.to(dtype) for state in states]
    if not torch.is_grad_enabled():
        plain = [linear_cross_entropy(state, weight, labels, chunk_size) for state in cast]
        losses = torch.stack(plain)
        return (weights * losses).sum(), losses
    loss, losses = _Sum.apply(  # type: ignore[no-untyped-call]
        weight.to(dtype), labels, weights, chunk_size, *cast
    )
    return loss, losses


__all__ = [
    "CHUNK_SIZE",
    "Scores",
    "chunks",
    "compute_dtype",
    "linear_cross_entropy",
    "linear_cross_entropy_sum",
    "without_autocast",
]
