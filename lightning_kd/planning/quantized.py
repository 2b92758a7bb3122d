"""4-bit storage, counted exactly: what bitsandbytes keeps of a linear layer, and when.

Dettmers et al., "QLoRA" (NeurIPS 2023), arXiv 2305.14314, sections 2 and 3; layout of bitsandbytes
0.49 and later.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.functional.four_bit import four_bit_bytes
from lightning_kd.nn.dynamic_lora import linear_shape


class QuantizedBytes(NamedTuple):
    """Bytes of one quantized weight."""

    codes: int
    scales: int


def nf4_bytes(numel: int, *, double_quant: bool = True) -> QuantizedBytes:
    """Bytes of a 4-bit weight: codes, and everything that is needed to read them.

    To `lightning_kd.functional.four_bit_bytes` bitsandbytes adds a table of 16 levels for each
    layer, and one of 256 with double quantization.

    Args:
        numel: Weights of the layer.
        double_quant: Whether the scales are quantized themselves.

    >>> nf4_bytes(4096 * 4096)
    QuantizedBytes(codes=8388608, scales=267332)
    """
    codes, scales = four_bit_bytes(numel, double_quant=double_quant)
    return QuantizedBytes(codes, scales + 4 * (16 + (256 if double_quant else 0)))


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
        base: The layer that it stands for, GPT-2's ``Conv1D`` included.
        double_quant: See `nf4_bytes`.
        compute_dtype: Of the product.
        old: As releases 0.41 and 0.42 did it, which kept every input for the backward pass.
    """

    def __init__(
        self, base: nn.Module, double_quant: bool, compute_dtype: torch.dtype, *, old: bool = False
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear_shape(base) or (0, 0)
        self.compute_dtype, self.old = compute_dtype, old
        count = self.in_features * self.out_features
        size, device = nf4_bytes(count, double_quant=double_quant), base.weight.device
        codes = torch.empty(size.codes, 1, dtype=torch.uint8, device=device)  # type: ignore[arg-type]
        self.weight = nn.Parameter(codes, requires_grad=False)
        scales = torch.empty(size.scales, dtype=torch.uint8, device=device)  # type: ignore[arg-type]
        self.register_buffer("scales", scales)
        self.bias = base.bias  # type: ignore[assignment]

    @override
    def forward(self, input: Tensor) -> Tensor:
        shape = self.out_features, self.in_features
        x = input.to(self.compute_dtype)
        made: Tensor = _MatMul4Bit.apply(x, self.weight, shape, self.old)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            made = made + self.bias.to(self.compute_dtype)
        return made.to(input.dtype)


__all__ = ["PlannedLinear4bit", "QuantizedBytes", "nf4_bytes"]
