"""Linear layers laid out for a few rows at a time: what decoding one text consists of.

A product with one row reads every weight once and is bound by memory; with five rows it should cost
the same, but the general CPU kernels take twice as long. oneDNN's blocked layout does not, and in
it a row's answer has the same bits whatever rows come with it. Its kernels for four to six rows
even beat those for one, the usual layout's included; fewer rows are therefore filled up with zeros.
"""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.nn.dynamic_lora import DynamicLoRALinear

_FEWEST = 4  # rows of a product
_ROWS = 8  # the layout for "a few rows"; laid out for one, five cost as much as five times one


class PackedLinear(nn.Linear):
    """``y = x W^T + b`` with a packed, constant W. CPU and float32 only.

    It is no parameter and not in the ``state_dict``; ``weight`` is unpacked at every reading, with
    the original bits.

    Args:
        weight: ``[m, d]``.
        bias: ``[m]`` or None.

    >>> layer = PackedLinear(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([0.5, 0.0]))
    >>> layer(torch.tensor([[1.0, 1.0]]))
    tensor([[3.5000, 3.0000]])
    """

    bias: Tensor | None  # type: ignore[assignment]

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a weight
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else bias.detach()
        dense = weight.detach().contiguous()
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(dense, _ROWS)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``[m, d]``, a copy in the usual layout."""
        return self._packed.to_dense()

    @override
    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // self.in_features
        if 0 < rows < _FEWEST:
            flat = nn.functional.pad(input.reshape(rows, -1), (0, 0, 0, _FEWEST - rows))
            return self._product(flat)[:rows].view(*input.shape[:-1], -1)
        return self._product(input)

    def _product(self, rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._packed, self.bias, "none", [], ""
        )
        return product


def can_pack() -> bool:
    """Whether this torch has the layout: oneDNN on a CPU.

    >>> can_pack() in (True, False)
    True
    """
    built = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def pack_linear_layers(model: nn.Module) -> int:
    """Replace the linear layers of a model by packed ones, in place; for inference only.

    ``nn.Linear`` and GPT-2's ``Conv1D`` in float32 on the CPU are replaced, quantized layers and
    those inside an adapter stay. A head that is tied to the embedding gets a copy of its own; else
    memory stays what it was, as the old weights are given up.

    Returns:
        How many were replaced.

    Raises:
        RuntimeError: This torch has no oneDNN.

    >>> pack_linear_layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    2
    """
    if not can_pack():
        raise RuntimeError(
            "this build of torch has no oneDNN to pack weights for; leave packing out"
        )
    inside = [name for name, m in model.named_modules() if isinstance(m, DynamicLoRALinear)]
    found = [
        name
        for name, module in model.named_modules()
        if _packable(module) and not any(name.startswith(f"{outer}.") for outer in inside)
    ]
    for name in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _packed(model.get_submodule(name)))
    return len(found)


def _packable(module: Any) -> bool:
    if type(module) is not nn.Linear and type(module).__name__ != "Conv1D":
        return False  # a subclass may compute something else, as the 4-bit layers do
    weight: Tensor = module.weight
    return weight.ndim == 2 and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _packed(module: Any) -> PackedLinear:
    weight = module.weight if isinstance(module, nn.Linear) else module.weight.t()
    return PackedLinear(weight, module.bias)


__all__ = ["PackedLinear", "can_pack", "pack_linear_layers"]
