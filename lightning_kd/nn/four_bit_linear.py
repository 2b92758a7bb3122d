"""Linear layers with four-bit weights: ours in plain tensors, bitsandbytes' behind the same doors.

QDyLoRA, arXiv 2402.10462. Only codes are kept: forward decodes the weight, and so does backward,
which hands the gradient on to lower layers and none to the weight.
"""

import copy
import importlib
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from lightning_kd.functional.four_bit import (
    BLOCK,
    FourBitWeight,
    dequantize_four_bit,
    quantize_four_bit,
)

BITSANDBYTES = "Linear4bit"  # the class's name: asking for the class would import the library


class _DecodedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: "FourBitLinear") -> Tensor:
        ctx.layer = layer  # its codes are frozen; neither they nor the decoded weight are saved
        return linear(x, layer.decoded(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.layer.decoded(grad.dtype), None, None


class FourBitLinear(nn.Linear):
    r"""A frozen linear layer that keeps four bits of every weight.

    .. math:: y = x \, \mathrm{decode}(W_q)^T + \mathrm{bias}, \qquad
        \partial L / \partial x = \partial L / \partial y \; \mathrm{decode}(W_q)

    Everything stored is whole numbers (scales as the bits of their floats), so that casting a model
    leaves it as it is. fp64 inputs are computed in fp64.

    Args:
        weight: ``[m, d]`` of any floating type.
        bias: ``[m]``, kept in fp32; or None.
        kind: ``nf4`` or ``fp4``.
        double_quant: Keep the scales in 8 bits.
        compute_dtype: Of the matrix product.

    >>> layer = FourBitLinear(torch.diag(torch.tensor([4.0, 2.0])))
    >>> layer(torch.tensor([1.0, 1.0]))
    tensor([4.0000, 1.7628])
    """

    def __init__(
        self,
        weight: Float[Tensor, "m d"],
        bias: Float[Tensor, " m"] | None = None,
        kind: str = "nf4",
        double_quant: bool = True,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.kind, self.compute_dtype = kind, compute_dtype
        codes, scales, outer = quantize_four_bit(weight, kind, double_quant=double_quant)
        self.weight = _frozen(codes)
        self.scales = _frozen(scales if double_quant else scales.view(torch.int32))
        self.outer_scales = None if outer is None else _frozen(outer.view(torch.int32))
        self.bias = None if bias is None else _frozen(bias.detach().float())  # type: ignore[assignment]

    @property
    def packed(self) -> FourBitWeight:
        """Codes and scales."""
        if self.outer_scales is None:
            return FourBitWeight(self.weight, self.scales.view(torch.float32), None)
        return FourBitWeight(self.weight, self.scales, self.outer_scales.view(torch.float32))

    def decoded(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "m d"]:
        """The weight that the codes stand for."""
        shape = self.out_features, self.in_features
        return dequantize_four_bit(self.packed, shape, self.kind, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the base class's name
        """``[*, d] -> [*, m]`` in the input's type."""
        compute = self.compute_dtype
        if torch.is_autocast_enabled(input.device.type):
            compute = torch.get_autocast_dtype(input.device.type)
        elif input.dtype == torch.float64:
            compute = torch.float64
        bias: Tensor | None = self.bias
        bias = None if bias is None else bias.to(compute)
        output: Tensor = _DecodedLinear.apply(input.to(compute), bias, self)  # type: ignore[no-untyped-call]
        return output.to(input.dtype)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"kind={self.kind!r}, double_quant={self.outer_scales is not None}"
        )


def bitsandbytes_linear(
    weight: Float[Tensor, "m d"],
    bias: Float[Tensor, " m"] | None,
    kind: str,
    double_quant: bool,
    compute_dtype: torch.dtype,
) -> nn.Linear:
    """The same as bitsandbytes' layer.

    On processors with bf16 instructions that layer would repack its weight for a kernel of its own
    as soon as it is evaluated, and answer otherwise than in training: this one never does.

    Raises:
        ValueError: It decodes this shape wrongly: release 0.50 does on processors with AVX-512
            where the inputs are a multiple of 16 and not of 64.
    """
    bnb = _bitsandbytes()
    settings: dict[str, Any] = {"compress_statistics": double_quant, "quant_type": kind}
    out_features, in_features = weight.shape
    layer: Any = bnb.nn.Linear4bit(
        in_features, out_features, bias is not None, compute_dtype, device="meta", **settings
    )
    # From fp32: it decodes to the type that it was made from.
    whole = weight.detach().float().contiguous()
    layer.weight = bnb.nn.Params4bit(whole, requires_grad=False, **settings).to(weight.device)
    layer.bias = None if bias is None else _frozen(bias.detach())
    layer.support_avx512bf16_for_cpu = False
    set_compute_dtype(layer, compute_dtype)
    if in_features % BLOCK and layer.weight.device.type == "cpu" and not _decodes_well(layer):
        raise ValueError(
            f"bitsandbytes decodes a weight of {in_features} inputs wrongly on this processor; "
            "set --model.backend reference"
        )
    return cast(nn.Linear, layer)


def _bitsandbytes() -> Any:
    return importlib.import_module("bitsandbytes")


def _decodes_well(layer: Any) -> bool:
    codes, scales, *nested = packed_tensors(layer)
    outer = torch.cat((nested[0], nested[1][None])) if nested else None
    kind = layer.weight.quant_state.quant_type
    theirs = dense_weight(layer)
    packed = FourBitWeight(codes.reshape(-1), scales, outer)
    return torch.allclose(dequantize_four_bit(packed, theirs.shape, kind), theirs)


def is_four_bit(module: nn.Module) -> bool:
    """Whether it is a quantized linear layer, of either make."""
    return isinstance(module, FourBitLinear) or type(module).__name__ == BITSANDBYTES


def set_compute_dtype(layer: nn.Module, dtype: torch.dtype) -> None:
    """Let a quantized layer multiply in ``dtype`` from now on."""
    made: Any = layer
    made.compute_dtype = dtype
    if not isinstance(layer, FourBitLinear):
        made.compute_type_is_set = True  # or the first input would decide
        made.weight.quant_state.dtype = dtype
        if made.bias is not None:
            made.bias.data = made.bias.data.to(dtype)


def dense_weight(layer: nn.Module) -> Float[Tensor, "m d"]:
    """The weight that a quantized layer stands for, in fp32."""
    if isinstance(layer, FourBitLinear):
        return layer.decoded()
    bnb = _bitsandbytes()
    weight: Any = layer.weight
    state = copy.copy(weight.quant_state)
    state.dtype = torch.float32
    decoded: Tensor = bnb.functional.dequantize_4bit(weight.data, state)
    return decoded


def packed_tensors(layer: nn.Module) -> list[Tensor]:
    """Codes and scales of a quantized layer: all that is kept of its weight."""
    if isinstance(layer, FourBitLinear):
        return [t for t in layer.packed if t is not None]
    weight: Any = layer.weight
    state = weight.quant_state
    nested = [] if state.state2 is None else [state.state2.absmax, state.offset]
    return [weight.data, state.absmax, *nested]


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


__all__ = [
    "FourBitLinear",
    "bitsandbytes_linear",
    "dense_weight",
    "is_four_bit",
    "packed_tensors",
    "set_compute_dtype",
]
