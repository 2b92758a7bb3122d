"""What an adapter on a four-bit base keeps in memory, by arithmetic."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from lightning_kd.functional.four_bit import four_bit_bytes


@dataclass(frozen=True)
class AdapterMemory:
    """Bytes by what they hold; activations and layers that are not quantized come on top.

    Attributes:
        codes: Four bits of every weight.
        scales: Of its blocks.
        adapters: All components, whatever the rank in use.
        gradients: Of the adapters, in their type.
        moments: AdamW's two for every entry, in 32 bits.
    """

    codes: int
    scales: int
    adapters: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(astuple(self))


def adapter_memory(
    shapes: Iterable[tuple[int, int]],
    max_rank: int,
    *,
    double_quant: bool = True,
    adapter_bytes: int = 4,
) -> AdapterMemory:
    """Of an adapter with ``max_rank`` components on four-bit layers, while it trains.

    Args:
        shapes: ``(inputs, outputs)`` of every layer.
        max_rank: Components; that fewer are drawn saves nothing.
        double_quant: Whether scales are in 8 bits.
        adapter_bytes: Of one entry: 4 as here, 2 in 16 bits.

    >>> layers = 60 * [(8192, 9216), (8192, 8192), (8192, 32768), (32768, 8192)]  # Falcon-40B
    >>> found = adapter_memory(layers, max_rank=64, adapter_bytes=2)
    >>> [round(b / 1e9, 2) for b in (found.codes, found.scales, found.adapters, found.moments)]
    [20.38, 0.65, 0.89, 3.55]
    """
    layers = list(shapes)
    kept = [four_bit_bytes(d * m, double_quant=double_quant) for d, m in layers]
    entries = sum(max_rank * (d + m) for d, m in layers)
    weights = entries * adapter_bytes
    return AdapterMemory(
        sum(c for c, _ in kept), sum(s for _, s in kept), weights, weights, 8 * entries
    )


__all__ = ["AdapterMemory", "adapter_memory"]
