"""4-bit storage, counted exactly: what bitsandbytes keeps of a linear layer, and when.

Dettmers et al., "QLoRA" (NeurIPS 2023), arXiv 2305.14314, sections 2 and 3; layout of bitsandbytes
0.49 and later.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

BLOCK = 64
"""Weights that share a scale."""
NESTED_BLOCK = 256
"""Scales that share a second-level scale, with double quantization."""


class QuantizedBytes(NamedTuple):
    """Bytes of one quantized weight."""

    codes: int
    scales: int


def nf4_bytes(numel: int, *, double_quant: bool = True) -> QuantizedBytes:
    r"""Bytes of a 4-bit weight: codes, and everything that is needed to read them.

    .. math::
        \lceil n/2 \rceil
        \quad\text{and}\quad
        \lceil n/64 \rceil + 4 \lceil \lceil n/64 \rceil / 256 \rceil + 4 + 1024 + 64

    The scales are one byte per block with double quantization (plus 4 bytes for 256 of them, their
    mean, and a table of 256 levels), 4 bytes without; each layer also keeps its 16 levels. For a
    large matrix that is 4.127 bits a weight, or 4.5.

    Args:
        numel: Weights of the layer.
        double_quant: Whether the scales are quantized themselves.

    >>> nf4_bytes(4096 * 4096)
    QuantizedBytes(codes=8388608, scales=267332)
    >>> round(8 * sum(nf4_bytes(2**30)) / 2**30, 3)
    4.127
    >>> 8 * sum(nf4_bytes(2**30, double_quant=False)) / 2**30
    4.5
    """
    blocks = -(-numel // BLOCK)
    levels = 16 * 4
    if not double_quant:
        return QuantizedBytes(-(-numel // 2), 4 * blocks + levels)
    second = 4 * -(-blocks // NESTED_BLOCK) + 4 + 256 * 4
    return QuantizedBytes(-(-numel // 2), blocks + second + levels)


class _MatMul4Bit(torch.autograd.Function):
    """The tensors of bitsandbytes' product: the weight is read out anew each time and dropped."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, codes: Tensor, shape: tuple[int, int], old: bool) -> Tensor:
        ctx.codes, ctx.shape, ctx.old = codes, shape, old
        ctx.x = x if old else None
        return x @ _read_out(x, shape, old).t()

    @staticmethod
    @override
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        (grad,) = grads
        return grad @ _read_out(grad, ctx.shape, ctx.old), None, None, None


def _read_out(like: Tensor, shape: tuple[int, int], old: bool) -> Tensor:
    if not old:
        return like.new_empty(shape)
    in_fp16 = like.new_empty(shape, dtype=torch.float16)
    return torch.empty_like(in_fp16, dtype=like.dtype)


class PlannedLinear4bit(nn.Linear):
    """A linear layer with the storage and the lifetimes of bitsandbytes', and no values.

    Args:
        base: The layer that it stands for.
        double_quant: See `nf4_bytes`.
        compute_dtype: Of the product.
        old: As releases 0.41 and 0.42 did it, which kept every input for the backward pass.
    """

    def __init__(
        self, base: nn.Linear, double_quant: bool, compute_dtype: torch.dtype, *, old: bool = False
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.compute_dtype, self.old = compute_dtype, old
        size = nf4_bytes(base.weight.numel(), double_quant=double_quant)
        codes = torch.empty(size.codes, 1, dtype=torch.uint8, device=base.weight.device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        scales = torch.empty(size.scales, dtype=torch.uint8, device=base.weight.device)
        self.register_buffer("scales", scales)
        self.bias = base.bias

    @override
    def forward(self, input: Tensor) -> Tensor:
        shape = self.out_features, self.in_features
        x = input.to(self.compute_dtype)
        made: Tensor = _MatMul4Bit.apply(x, self.weight, shape, self.old)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            made = made + self.bias.to(self.compute_dtype)
        return made.to(input.dtype)


__all__ = ["BLOCK", "NESTED_BLOCK", "PlannedLinear4bit", "QuantizedBytes", "nf4_bytes"]
