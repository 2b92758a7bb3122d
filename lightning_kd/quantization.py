"""Four-bit bases: a model whose linear layers are codes, and what that asks of a device.

QDyLoRA, arXiv 2402.10462, and QLoRA, arXiv 2305.14314. Layers are quantized in place one after the
other, so that no more than one of them is in memory twice.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_kd.checks import check_choice
from lightning_kd.functional.four_bit import FOUR_BIT, FourBit
from lightning_kd.nn.dynamic_lora import linear_shape
from lightning_kd.nn.four_bit_linear import (
    FourBitLinear,
    bitsandbytes_linear,
    dense_weight,
    is_four_bit,
)
from lightning_kd.nn.surgery import replace_modules

Backend = Literal["bitsandbytes", "reference"]
ComputeDtype = Literal["auto", "bfloat16", "float16", "float32"]
_HALF = (torch.float16, torch.bfloat16)


def quantize(
    model: nn.Module,
    kind: FourBit = "nf4",
    *,
    double_quant: bool = True,
    compute_dtype: torch.dtype = torch.float32,
    backend: Backend = "bitsandbytes",
    exclude: Sequence[str] = (),
) -> list[str]:
    """Replace the linear layers of a model by frozen four-bit ones, in place.

    Embeddings and excluded layers stay as they are; those in 16 bits are given what they compute
    with, so that a model of mixed types runs without autocast. Norms become fp32.

    Args:
        model: A transformers model, or any module. GPT-2's ``Conv1D`` becomes a linear layer.
        kind: ``nf4`` or ``fp4``.
        double_quant: Keep block scales in 8 bits: 4.13 instead of 4.5 bits a weight.
        compute_dtype: Of the matrix products.
        backend: ``bitsandbytes``, or ``reference``: plain tensors on every device.
        exclude: Modules left as they are (the task head), as full names or their dotted suffixes.

    Returns:
        The names of the layers.

    Raises:
        ValueError: Unknown kind or backend, no linear layer, or one that is quantized already.
        ImportError: The backend is not installed.
    """
    check_choice("quantization", kind, FOUR_BIT)
    check_choice("backend", backend, ("bitsandbytes", "reference"))
    if backend == "bitsandbytes":
        require_bitsandbytes()
    make = FourBitLinear if backend == "reference" else bitsandbytes_linear
    linear = {n: m for n, m in model.named_modules() if linear_shape(m) is not None}
    if packed := [n for n, m in linear.items() if is_four_bit(m) or _is_packed(m)]:
        raise ValueError(f"{packed[0]} is quantized already; give the model in 16 or 32 bits")
    names = [n for n in linear if not any(f".{x}." in f".{n}." for x in exclude)]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no linear layer outside {list(exclude)} to quantize; "
            "give a transformer"
        )

    def quantized(old: nn.Module) -> nn.Module:
        weight: Tensor = old.weight  # type: ignore[assignment]
        if not isinstance(old, nn.Linear):
            weight = weight.t()  # Conv1D keeps [in, out]
        bias: Tensor | None = old.bias  # type: ignore[assignment]
        return make(weight, bias, kind, double_quant, compute_dtype)

    replace_modules(model, names, quantized)
    keep_consistent(model)
    return names


def keep_consistent(model: nn.Module) -> None:
    """Norms in fp32; what stays in 16 bits takes and gives what its neighbours give and take."""
    for module in model.modules():
        if "norm" in type(module).__name__.lower():
            widen(module)
        elif isinstance(module, nn.Embedding):
            module.register_forward_hook(_widened)
        elif isinstance(module, nn.Linear) and not _is_packed(module):
            module.register_forward_pre_hook(_in_own_type)


def widen(module: nn.Module) -> None:
    """Give a module's 16-bit weights 32 bits; unlike `torch.nn.Module.float`, also fake ones."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            if value.dtype in _HALF:
                wide = nn.Parameter(value.detach().float(), requires_grad=value.requires_grad)
                part.register_parameter(name, wide)
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.dtype in _HALF:
                part._buffers[name] = buffer.float()


def dequantize(model: nn.Module) -> None:
    """Replace the four-bit layers of a model by dense ones with the same weights, in fp32."""
    names = [name for name, module in model.named_modules() if is_four_bit(module)]

    def dense(old: nn.Module) -> nn.Module:
        bias: Tensor | None = old.bias  # type: ignore[assignment]
        weight = dense_weight(old)
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        made.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            made.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
        return made

    replace_modules(model, names, dense)


def require_bitsandbytes() -> None:
    """Raise `ImportError` with the way out where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            "a base in four bits needs bitsandbytes; `pip install -e .[quant]`, or set "
            "--model.backend reference (plain PyTorch, slower on a GPU)"
        )


def check_device(device: torch.device, backend: str) -> None:
    """Raise `ValueError` for a device that cannot hold four-bit layers."""
    way_out = "set --model.backend reference, or --trainer.accelerator cpu"
    if device.type == "mps" and backend == "reference":  # it decodes through doubles
        raise ValueError(
            "the reference backend needs 64-bit numbers, which mps lacks; set --model.backend "
            "bitsandbytes, or --trainer.accelerator cpu"
        )
    if backend != "bitsandbytes":
        return
    bnb: Any = importlib.import_module("bitsandbytes")
    if device.type not in bnb.supported_torch_devices:
        raise ValueError(f"bitsandbytes has no four-bit layers on {device.type}; {way_out}")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (6, 0):
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"bitsandbytes has no four-bit layers for {name}; {way_out}")


def choose_compute_dtype(
    wanted: str, device: torch.device, precision: str = "32-true"
) -> tuple[torch.dtype, str]:
    """The type of matrix products on a device, and why.

    Args:
        wanted: ``auto``, or the name of a type.
        device: Where the products are computed.
        precision: The trainer's. A mixed one decides: it casts every product.

    Raises:
        ValueError: Another type than that of a mixed precision, or bfloat16 on a GPU without.

    >>> choose_compute_dtype("auto", torch.device("cpu"))
    (torch.float32, 'few processors have bfloat16 arithmetic')
    """
    check_choice("compute_dtype", wanted, ("auto", "bfloat16", "float16", "float32"))
    mixed = mixed_dtype(wanted, precision)
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    lacks = f"{torch.cuda.get_device_name(device)} has no bfloat16 arithmetic" if old else ""
    if old and (mixed is torch.bfloat16 or wanted == "bfloat16"):
        raise ValueError(
            f"{lacks}; set --trainer.precision 16-mixed, or 32-true with --model.compute_dtype auto"
        )
    if mixed is not None:
        return mixed, f"trainer.precision={precision} computes every product in it"
    if wanted != "auto":
        found: torch.dtype = getattr(torch, wanted)
        return found, "as it was set"
    if device.type == "cpu":
        return torch.float32, "few processors have bfloat16 arithmetic"
    if not old:
        return torch.bfloat16, "the paper's"
    return torch.float32, (
        f"{lacks}, and in float16 a fifth of QLoRA's runs on LLaMA-7B failed (its README); "
        "--model.compute_dtype float16 is faster"
    )


def mixed_dtype(wanted: str, precision: str) -> torch.dtype | None:
    """The type that a mixed precision casts products to; None: it is not mixed.

    Raises:
        ValueError: ``wanted`` is another one, and would have no effect.

    >>> mixed_dtype("auto", "16-mixed"), mixed_dtype("float32", "32-true")
    (torch.float16, None)
    """
    mixed = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}.get(precision)
    if mixed is None:
        return None
    if wanted not in ("auto", mixed):
        raise ValueError(
            f"compute_dtype={wanted} has no effect with trainer.precision={precision}, which "
            f"computes every product in {mixed}; set --trainer.precision 32-true, or "
            "--model.compute_dtype auto"
        )
    found: torch.dtype = getattr(torch, mixed)
    return found


def paged_adamw(groups: list[dict[str, Any]], rate: float) -> Optimizer:
    """AdamW with 32-bit states that move to the host's memory when the GPU's is full."""
    require_bitsandbytes()
    bnb: Any = importlib.import_module("bitsandbytes")
    made: Optimizer = bnb.optim.PagedAdamW32bit(groups, lr=rate)
    return made


def _is_packed(module: nn.Module) -> bool:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return not weight.is_floating_point()


def _widened(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    del module, args
    return output.float() if output.dtype in _HALF else output


def _in_own_type(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return (args[0].to(weight.dtype), *args[1:])


__all__ = [
    "Backend",
    "ComputeDtype",
    "check_device",
    "choose_compute_dtype",
    "dequantize",
    "keep_consistent",
    "mixed_dtype",
    "paged_adamw",
    "quantize",
    "require_bitsandbytes",
    "widen",
]
