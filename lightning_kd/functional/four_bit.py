r"""Four-bit weights: NF4 and FP4 codes with one or two levels of block scales, in plain tensors.

Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA", arXiv 2305.14314, sections 2 and 3; used by
QDyLoRA, arXiv 2402.10462, as the frozen base. Bits and bytes are laid out as bitsandbytes lays them
out, so that codes can be compared. Letters in shapes: ``n`` weights, ``h`` bytes (two weights in
each, the first in the upper half), ``k`` blocks, ``j`` blocks of blocks.
"""

from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

FourBit = Literal["nf4", "fp4"]
FOUR_BIT: tuple[str, ...] = get_args(FourBit)
BLOCK, OUTER_BLOCK = 64, 256
"""Weights that share a scale, and scales that share a second one (double quantization)."""

# Quantiles of a normal distribution, scaled to [-1, 1] with an exact 0: 7 below and 8 above it.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# A sign, two bits of exponent and one of mantissa; the codes are not in the order of their values.
_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)


class FourBitWeight(NamedTuple):
    """A weight in four bits.

    Attributes:
        codes: Two codes a byte.
        scales: The largest magnitude of each block, or its 8-bit code.
        outer_scales: Of the blocks of 8-bit codes, and behind them the mean of all scales; None
            without double quantization.
    """

    codes: UInt8[Tensor, " h"]
    scales: Float[Tensor, " k"] | UInt8[Tensor, " k"]
    outer_scales: Float[Tensor, " j"] | None


def four_bit_levels(kind: str) -> Float[Tensor, "16"]:
    """The 16 numbers in [-1, 1] that a code stands for, by code.

    Raises:
        ValueError: Unknown kind.

    >>> four_bit_levels("nf4")[[0, 7, 8, 15]]
    tensor([-1.0000,  0.0000,  0.0796,  1.0000])
    """
    match kind:
        case "nf4":
            return torch.tensor(_NF4, dtype=torch.float32)  # whatever the default is
        case "fp4":
            half = torch.tensor(_FP4, dtype=torch.float32) / 12
            return torch.cat((half, -half))
    raise ValueError(f"a four-bit kind is one of {', '.join(FOUR_BIT)}, got {kind!r}")


def dynamic_levels() -> Float[Tensor, "256"]:
    """The 256 numbers in [-1, 1] of the 8-bit code for scales: finer towards 0.

    For each of seven powers of ten the middles of ``2**i`` equal parts of [0.1, 1], either sign;
    also 0 and 1 (Dettmers, arXiv 1511.04561).

    >>> levels = dynamic_levels()
    >>> len(levels), levels[0], levels[127:129], levels[-1]
    (256, tensor(-0.9930), tensor([0.0000e+00, 5.5000e-07]), tensor(1.))
    """
    found = [torch.tensor([0.0, 1.0], dtype=torch.float32)]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        middles = 10.0 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
        found += [middles, -middles]
    return torch.cat(found).sort().values


def quantize_four_bit(
    weight: Tensor, kind: str = "nf4", *, double_quant: bool = True, block: int = BLOCK
) -> FourBitWeight:
    r"""The nearest code of every weight, relative to the largest magnitude of its block.

    .. math:: s = \max_{block} |w|, \qquad c = \arg\min_k |q_k - w / s|

    Blocks run through the flattened weight; a block of zeros stays zero.

    Args:
        weight: Any shape.
        kind: ``nf4`` or ``fp4``.
        double_quant: Keep the scales in 8 bits, less their mean, with a scale for 256 of them.
        block: Weights that share a scale, an even number.

    Raises:
        ValueError: Unknown kind, an odd or negative block.

    >>> found = quantize_four_bit(torch.tensor([0.0, 2.0, -1.0, 1.5]), double_quant=False)
    >>> [f"{byte:08b}" for byte in found.codes.tolist()], found.scales
    (['01111111', '00101110'], tensor([2.]))
    """
    if block < 2 or block % 2:
        raise ValueError(f"a block is an even number of weights, got {block}")
    levels = four_bit_levels(kind).to(weight.device)
    flat = weight.detach().reshape(-1).float()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scales = padded.abs().amax(1)
    relative = padded * torch.where(scales > 0, 1 / scales, 0)[:, None]
    codes = _nearest(relative.view(-1), levels)[: len(flat) + len(flat) % 2].view(-1, 2)
    packed = codes[:, 0] << 4 | codes[:, 1]
    if not double_quant:
        return FourBitWeight(packed, scales, None)
    mean = scales.mean()
    inner = torch.nn.functional.pad(scales - mean, (0, -len(scales) % OUTER_BLOCK))
    outer = inner.view(-1, OUTER_BLOCK).abs().amax(1)
    relative = inner.view(-1, OUTER_BLOCK) * torch.where(outer > 0, 1 / outer, 0)[:, None]
    eight_bit = _nearest(relative.view(-1), dynamic_levels().to(weight.device))[: len(scales)]
    return FourBitWeight(packed, eight_bit, torch.cat((outer, mean[None])))


def dequantize_four_bit(
    weight: FourBitWeight,
    shape: Sequence[int],
    kind: str = "nf4",
    *,
    block: int = BLOCK,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""The weight that the codes stand for, :math:`w = s q_c`, computed in fp32 and cast once.

    A byte is decoded as a whole: a table of 256 pairs is read once for two weights.

    Args:
        weight: From `quantize_four_bit`, with its ``kind`` and ``block``.
        shape: Of the result.
        kind: ``nf4`` or ``fp4``.
        block: Weights that share a scale.
        dtype: Of the result.

    >>> found = quantize_four_bit(torch.tensor([0.0, 2.0, -1.0, 1.5]), double_quant=False)
    >>> dequantize_four_bit(found, (2, 2))
    tensor([[ 0.0000,  2.0000],
            [-1.0501,  1.4459]])
    """
    pairs = _pair_table(kind, weight.codes.device)
    # One read of eight bytes a byte of codes: the two floats of a pair are moved as one double.
    values = pairs.index_select(0, weight.codes.int()).view(torch.float32)
    scales = dequantize_scales(weight)
    count = torch.Size(shape).numel()
    whole = count // block * block
    values[:whole].view(-1, block).mul_(scales[: whole // block, None])
    values[whole:].mul_(scales[-1:])
    return values[:count].view(*shape).to(dtype)


def dequantize_scales(weight: FourBitWeight) -> Float[Tensor, " k"]:
    """The scale of each block in fp32, whichever way it is kept.

    >>> found = quantize_four_bit(torch.tensor([0.0, 2.0, -1.0, 1.5]))
    >>> found.scales, found.outer_scales, dequantize_scales(found)
    (tensor([127], dtype=torch.uint8), tensor([0., 2.]), tensor([2.]))
    """
    if weight.outer_scales is None:
        return weight.scales
    levels = dynamic_levels().to(weight.scales.device).index_select(0, weight.scales.int())
    outer = weight.outer_scales[:-1].repeat_interleave(OUTER_BLOCK)[: len(levels)]
    return levels.mul_(outer).add_(weight.outer_scales[-1])


def four_bit_bytes(count: int, *, double_quant: bool = True, block: int = BLOCK) -> tuple[int, int]:
    """Bytes of the codes and of the scales of ``count`` weights.

    >>> codes, scales = four_bit_bytes(64 * 256 * 1000)
    >>> round(8 * (codes + scales) / (64 * 256 * 1000), 3)  # bits a weight; 4.5 with one level
    4.127
    """
    blocks = -(-count // block)
    if not double_quant:
        return -(-count // 2), 4 * blocks
    return -(-count // 2), blocks + 4 * -(-blocks // OUTER_BLOCK) + 4


def _nearest(values: Float[Tensor, " n"], levels: Float[Tensor, " l"]) -> UInt8[Tensor, " n"]:
    """The code of the nearest level; half-way between two it is the lower one."""
    ordered, codes = levels.sort(stable=True)
    places = torch.bucketize(values, (ordered[1:] + ordered[:-1]) / 2, out_int32=True)
    return codes.to(torch.uint8).index_select(0, places)


@cache
def _pair_table(kind: str, device: torch.device) -> Float[Tensor, "256"]:
    """Both levels of each byte, as one double's worth of bits."""
    levels = four_bit_levels(kind)
    byte = torch.arange(256)
    return (
        torch.stack((levels[byte >> 4], levels[byte & 15]), 1).view(torch.float64)[:, 0].to(device)
    )


__all__ = [
    "BLOCK",
    "FOUR_BIT",
    "OUTER_BLOCK",
    "FourBit",
    "FourBitWeight",
    "dequantize_four_bit",
    "dequantize_scales",
    "dynamic_levels",
    "four_bit_bytes",
    "four_bit_levels",
    "quantize_four_bit",
]
