r"""Dynamic low-rank updates: the arithmetic of DyLoRA on tensors.

Valipour et al. (EACL 2023), arXiv 2210.07558. Paper's symbols: :math:`W_{dw}` is ``lora_A``
``[R, d]``, :math:`W_{up}` is ``lora_B`` ``[m, R]``, :math:`b` is ``rank``. Letters in shapes: ``t``
any leading axes, ``d`` inputs, ``m`` outputs, ``R`` components (the maximal rank), ``n`` examples.
"""

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

LoRAScaling = Literal["alpha/b", "alpha/R", "alpha/sqrt(b)"]
LORA_SCALINGS: tuple[str, ...] = get_args(LoRAScaling)


def lora_scale(scaling: str, alpha: float, rank: int, max_rank: int) -> float:
    r"""Factor :math:`s(b)` in front of :math:`W_{up|b} W_{dw|b}`.

    ``alpha/b`` is the paper's (Eq. 7): the update is a running mean of its components.
    ``alpha/R`` is the same number at every rank, which makes the updates of all ranks nested sums.
    ``alpha/sqrt(b)`` is the rank-stabilized factor of rsLoRA. All three agree with plain LoRA's
    (or rsLoRA's) at ``rank == max_rank``.

    Raises:
        ValueError: ``scaling`` is none of the three.

    >>> [lora_scale(s, alpha=16.0, rank=4, max_rank=8) for s in LORA_SCALINGS]
    [4.0, 2.0, 8.0]
    """
    match scaling:
        case "alpha/b":
            return alpha / rank
        case "alpha/R":
            return alpha / max_rank
        case "alpha/sqrt(b)":
            return alpha / math.sqrt(rank)
    raise ValueError(f"scaling must be one of {', '.join(LORA_SCALINGS)}, got {scaling!r}")


class _DynamicLoRA(torch.autograd.Function):
    """One `addmm` forward; backward touches the active components only.

    Slicing the factors in the graph instead would give the same numbers, but saves and scatters
    zero-padded copies for every slice and scales a ``[t, m]`` tensor of its own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base_output: Tensor,
        x: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        rank: int,
        scale: float,
        num_frozen: int,
    ) -> Tensor:
        x = x.reshape(-1, x.shape[-1])
        code = x @ lora_a[:rank].t()  # [t, b]
        # A view as output could not be changed in place afterwards, which Falcon's blocks do.
        output = torch.empty_like(base_output, memory_format=torch.contiguous_format)
        torch.addmm(
            base_output.reshape(-1, base_output.shape[-1]),
            code,
            lora_b[:, :rank].t(),
            alpha=scale,
            out=output.view(-1, base_output.shape[-1]),
        )
        ctx.save_for_backward(x, code, lora_a, lora_b)
        ctx.rank, ctx.scale, ctx.first = rank, scale, num_frozen
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, code, lora_a, lora_b = ctx.saved_tensors
        rank, first = ctx.rank, ctx.first
        flat = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_a = grad_b = None
        grad_code = (flat @ lora_b[:, :rank]).mul_(ctx.scale)  # [t, b]
        if ctx.needs_input_grad[1]:
            # Frozen components are constants, yet the signal still flows through all of them.
            grad_x = (grad_code @ lora_a[:rank]).view(*grad.shape[:-1], x.shape[-1])
        if ctx.needs_input_grad[2]:
            grad_a = torch.zeros_like(lora_a)
            grad_a[first:rank].addmm_(grad_code[:, first:].t(), x)
        if ctx.needs_input_grad[3]:
            grad_b = torch.zeros_like(lora_b)
            grad_b.t()[first:rank].addmm_(code[:, first:].t(), flat, alpha=ctx.scale)
        return grad, grad_x, grad_a, grad_b, None, None, None


def dynamic_lora(
    base_output: Float[Tensor, "*t m"],
    x: Float[Tensor, "*t d"],
    lora_a: Float[Tensor, "R d"],
    lora_b: Float[Tensor, "m R"],
    *,
    rank: int,
    scale: float,
    num_frozen: int = 0,
) -> Float[Tensor, "*t m"]:
    r"""Add a low-rank update cut to its first ``rank`` components.

    .. math:: h = W_0 x + s \, W_{up|b} W_{dw|b} x

    Source: DyLoRA, Eq. 7. Without gradients the operations come in PEFT's order (scale last), so
    the result is bit-equal to a PEFT LoRA layer holding the same ``rank`` components.

    Args:
        base_output: :math:`W_0 x`.
        x: Input of the layer.
        lora_a: Down-projection, all components.
        lora_b: Up-projection, all components.
        rank: Active components, from 1 to ``R``; ``R`` is plain LoRA.
        scale: The factor :math:`s` (`lora_scale`).
        num_frozen: Leading components that are constants; 0 trains all of them, ``rank - 1`` is
            the paper's frozen rule. Values and the gradient of ``x`` are the same either way.

    >>> one = torch.ones
    >>> dynamic_lora(one(1, 2), one(1, 4), one(3, 4), one(2, 3), rank=2, scale=0.5)
    tensor([[5., 5.]])
    """
    dtype = base_output.dtype
    compute = lora_a.dtype
    if torch.is_autocast_enabled(x.device.type):
        compute = torch.get_autocast_dtype(x.device.type)
    x = x.to(compute)
    if torch.is_grad_enabled():
        output: Tensor = _DynamicLoRA.apply(  # type: ignore[no-untyped-call]
            base_output.to(compute),
            x,
            lora_a.to(compute),
            lora_b.to(compute),
            rank,
            scale,
            num_frozen,
        )
    else:
        # Cut before casting: a generated token pays for the active components only. The copy is a
        # few kilobytes; a strided factor would send BLAS down another path.
        down = lora_a[:rank].to(compute)
        up = lora_b[:, :rank].to(compute).contiguous()
        output = base_output + linear(linear(x, down), up) * scale
    return output.to(dtype)


def dynamic_lora_sweep(
    base_output: Float[Tensor, "n *t m"],
    x: Float[Tensor, "n *t d"],
    lora_a: Float[Tensor, "R d"],
    lora_b: Float[Tensor, "m R"],
    ranks: Int[Tensor, " n"],
    scales: Float[Tensor, " n"],
) -> Float[Tensor, "n *t m"]:
    """`dynamic_lora` with a rank of its own for each example: all ranks in one batched pass.

    The code is computed once at full width and masked per example.

    >>> one = torch.ones
    >>> ranks, scales = torch.tensor([1, 3]), torch.tensor([2.0, 1.0])
    >>> dynamic_lora_sweep(torch.zeros(2, 1), one(2, 4), one(3, 4), one(1, 3), ranks, scales)
    tensor([[ 8.],
            [12.]])
    """
    components = torch.arange(lora_a.shape[0], device=ranks.device)
    mask = (components < ranks[:, None]) * scales[:, None]  # [n, R]
    code = linear(x.to(lora_a.dtype), lora_a)
    code = code * mask.to(code.dtype).view(len(ranks), *[1] * (x.dim() - 2), -1)
    return (base_output + linear(code, lora_b)).to(base_output.dtype)


def truncate_svd(
    lora_a: Float[Tensor, "R d"], lora_b: Float[Tensor, "m R"], rank: int
) -> tuple[Float[Tensor, "r d"], Float[Tensor, "m r"]]:
    r"""Factors of the best rank-``rank`` approximation of :math:`W_{up} W_{dw}` (Eckart-Young).

    The strong, cheap rival of a dynamic adapter: train one LoRA, cut its product optimally. The
    product is never formed: two QR factorizations leave an ``R x R`` matrix to decompose.

    >>> a, b = truncate_svd(torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.eye(3), rank=2)
    >>> (b @ a).abs().round(decimals=3)
    tensor([[3., 0., 0.],
            [0., 2., 0.],
            [0., 0., 0.]])
    """
    q_b, r_b = torch.linalg.qr(lora_b)
    q_a, r_a = torch.linalg.qr(lora_a.t())
    left, singular, right = torch.linalg.svd(r_b @ r_a.t())
    root = singular[:rank].sqrt()  # shared evenly, as after training
    return root[:, None] * (right[:rank] @ q_a.t()), (q_b @ left[:, :rank]) * root


__all__ = [
    "LORA_SCALINGS",
    "LoRAScaling",
    "dynamic_lora",
    "dynamic_lora_sweep",
    "lora_scale",
    "truncate_svd",
]
