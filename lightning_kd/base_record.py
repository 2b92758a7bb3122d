"""What base an adapter was trained on: written beside it, compared when it is loaded."""

import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

from lightning_kd.functional.four_bit import BLOCK
from lightning_kd.nn.four_bit_linear import FourBitLinear, is_four_bit, packed_tensors

RECORD: Final = "adapter_quantization.json"
"""Beside an exported adapter: what its base was, for which PEFT's config has no field."""


@dataclass(frozen=True)
class BaseRecord:
    """The base that an adapter was trained on, as far as a loaded one can be compared with it.

    Attributes:
        kind: ``nf4`` or ``fp4``.
        double_quant: Whether its scales are in 8 bits.
        block_size: Weights that share a scale.
        compute_dtype: Of its matrix products.
        weights: A hash of its codes and scales.
    """

    kind: str
    double_quant: bool
    block_size: int
    compute_dtype: str
    weights: str

    @property
    def identity(self) -> str:
        """What makes it the same base, whatever it computes in."""
        return f"{self.kind} {self.double_quant} {self.block_size} {self.weights}"

    def write(self, folder: Path) -> None:
        """Put the record into an adapter's folder."""
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "BaseRecord | None":
        """The record in an adapter's folder; None where there is none.

        Raises:
            ValueError: It is damaged.
        """
        path = folder / RECORD
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); export the adapter again, or delete the file to "
                "load it without a check of its base"
            ) from error


def record_of(modules: Iterable[tuple[str, nn.Module]]) -> BaseRecord | None:
    """What there is to say of the four-bit layers among named modules; None where there are none.

    >>> record_of(nn.Linear(2, 2).named_modules())
    """
    digest = hashlib.sha256()
    found: nn.Module | None = None
    for name, module in modules:
        if is_four_bit(module):
            found = module
            digest.update(name.replace(".base_layer", "").encode())
            for tensor in packed_tensors(module):
                # In the codes of another make a scale may differ by a bit: bf16 hides that.
                picked = tensor.reshape(-1)[:: max(1, tensor.numel() // 16)].to("cpu")
                picked = picked.bfloat16() if picked.is_floating_point() else picked
                digest.update(str(picked.tolist()).encode())
    if found is None:
        return None
    layer: Any = found
    ours = isinstance(found, FourBitLinear)
    kind = layer.kind if ours else layer.weight.quant_state.quant_type
    double = layer.outer_scales is not None if ours else layer.weight.quant_state.nested
    dtype = str(layer.compute_dtype).removeprefix("torch.")
    return BaseRecord(kind, double, BLOCK, dtype, digest.hexdigest()[:32])


def warn_of_another_base(theirs: BaseRecord | None, ours: BaseRecord | None) -> None:
    """Warn where an adapter meets a base it was not trained on, and say what differs."""
    if theirs == ours or theirs is None:  # without a record nothing can be said
        return
    if ours is None:
        warnings.warn(
            f"the adapter was trained on a base in four bits ({theirs.kind}), this one is not "
            "quantized: answers differ by the quantization error; use QDyLoRA for the same ones",
            stacklevel=2,
        )
        return
    pairs = zip(asdict(theirs).items(), asdict(ours).values(), strict=True)
    differing = {name: (value, other) for (name, value), other in pairs if value != other}
    if differing.keys() != {"weights"}:
        differing.pop("weights", None)  # another quantization has other codes of the same weights
    said = ", ".join(
        f"{name} {value} there and {own} here" for name, (value, own) in differing.items()
    )
    warnings.warn(
        f"the adapter was trained on another base ({said}); its answers will differ: use the base "
        "and the settings it was trained with",
        stacklevel=2,
    )


__all__ = ["RECORD", "BaseRecord", "record_of", "warn_of_another_base"]
