"""The networks of a training without their values: fake tensors know shapes and lifetimes."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.models import head_modules, load_model, quiet, with_padding
from lightning_kd.nn import DynamicLoRALinear, keep_layers, match_linear_layers, replace_modules
from lightning_kd.nn.dynamic_lora import linear_shape
from lightning_kd.planning.device import AsOnGPU
from lightning_kd.planning.live import tensor_bytes
from lightning_kd.planning.quantized import PlannedLinear4bit
from lightning_kd.planning.training import Training
from lightning_kd.quantization import keep_consistent, widen
from lightning_kd.tasks import Task


@dataclass
class Networks:
    """What is on the device for the whole training.

    Attributes:
        student: With its adapters, in train mode.
        teacher: Frozen; None: there is none.
    """

    student: nn.Module
    teacher: nn.Module | None

    def parts(self) -> dict[str, int]:
        """Bytes of weights, by what they are."""
        names = {id(p): name for name, p in self.student.named_parameters()}
        sizes: dict[str, int] = {}
        for tensor in (*self.student.parameters(), *self.student.buffers()):
            sizes_of(sizes, tensor, adapter=_is_factor(names.get(id(tensor), "")))
        scales: list[Tensor] = [
            m.get_buffer("scales")
            for m in self.student.modules()
            if isinstance(m, PlannedLinear4bit)
        ]
        if scales:
            sizes["weights, uint8"] -= tensor_bytes(scales)
            sizes["weights, 4 bits"] = sizes.pop("weights, uint8")
            sizes["scales of 4-bit weights"] = tensor_bytes(scales)
        if self.teacher is not None:
            weights = (*self.teacher.parameters(), *self.teacher.buffers())
            sizes["teacher"] = tensor_bytes(weights)
        return sizes

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The weights that train."""
        return [p for p in self.student.parameters() if p.requires_grad]


def sizes_of(sizes: dict[str, int], tensor: torch.Tensor, *, adapter: bool) -> None:
    """Add a tensor to the part that it belongs to."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    part = "adapters" if adapter else f"weights, {dtype}"
    sizes[part] = sizes.get(part, 0) + tensor.untyped_storage().nbytes()


def _is_factor(name: str) -> bool:
    return "lora_A" in name or "lora_B" in name


def make_networks(training: Training, layers: int | None = None) -> Networks:
    """Student and teacher, to be called where tensors are fake.

    Args:
        training: What is planned.
        layers: Cut both to so many layers.
    """
    student = _make(training.student, training.task, training)
    if training.student_layers is not None:
        wanted = training.student_layers
        keep_layers(student, wanted if isinstance(wanted, int) else list(wanted))
    if layers is not None:
        keep_layers(student, layers)
    heads = head_modules(student)
    if training.quantization is not None:
        whole = () if training.quantize_head else heads
        _quantize(
            student,
            whole,
            double_quant=training.double_quant,
            compute=training.compute_dtype,
            old=training.old_bitsandbytes,
        )
        if training.dynamic:  # as `lightning_kd.methods.QDyLoRA` does
            keep_consistent(student)
            for name in _saved(heads, training):
                widen(student.get_submodule(name))
    student = _trained(student, heads, training)
    if training.checkpointing:
        _checkpoint(student, training.device)
    return Networks(student.train(), _teacher(training, layers))


def _checkpoint(student: nn.Module, device: str) -> None:
    # Recomputing needs no random state here, and reading one is no operation on fake tensors.
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if device == "cuda":  # the mode around the step does not reach a backward pass
        settings["context_fn"] = lambda: (nullcontext(), AsOnGPU())
    made: Any = student
    made.config.use_cache = False  # or it is said to be incompatible
    newer = getattr(made, "activation_checkpointing_enable", None)  # transformers 5.2x renamed it
    (newer or made.gradient_checkpointing_enable)(settings)


def _teacher(training: Training, layers: int | None) -> nn.Module | None:
    if training.teacher is None:
        return None
    teacher = _make(training.teacher, training.task, training)
    if layers is not None and (stack := layer_stack(teacher)) is not None:
        keep_layers(teacher, min(layers, len(stack)))
    if training.teacher_bits == 4:
        _quantize(teacher, head_modules(teacher), double_quant=True, compute=torch.float32)
    return teacher.requires_grad_(requires_grad=False).eval()


def layer_stack(model: nn.Module) -> nn.ModuleList | None:
    """The list of a transformer's blocks."""
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList))
    return next((m for m in lists if len(m) == depth), None)


def equal_layers(model: nn.Module) -> int:
    """How many blocks a model is made of that are all alike; 0: they differ, or there are none."""
    stack = layer_stack(model)
    if stack is None or len(set(getattr(model.config, "layer_types", None) or [0])) > 1:
        return 0
    shapes = {
        tuple((name, tuple(p.shape), p.dtype) for name, p in layer.named_parameters())
        for layer in stack
    }
    return len(stack) if len(shapes) == 1 else 0


def _make(config: Any, task: Task | None, training: Training) -> nn.Module:
    import transformers

    if isinstance(config, str):
        if task is None:
            raise ValueError(f"{config} is no language model; say which task it learns")
        return load_model(config, task, pretrained=False)
    config = copy.deepcopy(config)  # a task writes its labels into it
    dtype = training.weight_dtype(config)
    if task is None or training.predicts_tokens:
        language: Any = transformers.AutoModelForCausalLM
        with quiet():
            return with_padding(language.from_config(config, dtype=dtype))
    config.dtype = dtype
    return load_model(config, task)


def _quantize(
    model: nn.Module,
    heads: Sequence[str],
    *,
    double_quant: bool,
    compute: torch.dtype,
    old: bool = False,
) -> None:
    names = match_linear_layers(model, "all-linear", exclude=heads)
    replace_modules(
        model, names, lambda base: PlannedLinear4bit(base, double_quant, compute, old=old)
    )


def _trained(student: nn.Module, heads: Sequence[str], training: Training) -> nn.Module:
    """The student with what trains switched on, and all else off."""
    if training.train == "all":
        return student
    student.requires_grad_(requires_grad=False)
    if training.train == "head":
        for name in heads:
            student.get_submodule(name).requires_grad_(requires_grad=True)
        return student
    return _with_adapters(student, heads, training)


def _with_adapters(student: nn.Module, heads: Sequence[str], training: Training) -> nn.Module:
    saved = _saved(heads, training)
    names = match_linear_layers(student, training.target_modules, exclude=[*heads, *saved])
    replace_modules(student, names, lambda base: _adapted(base, training))
    for name, parameter in student.named_parameters():
        parameter.requires_grad = _is_factor(name)
    for name in saved:
        module = student.get_submodule(name)
        if not training.dynamic:  # PEFT keeps the original beside the copy that it trains
            module.add_module("original_module", _twin(module))
        for part, parameter in module.named_parameters():
            parameter.requires_grad = not part.startswith("original_module")
    return student


def _twin(module: nn.Module) -> nn.Module:
    """Weights of the same shapes; a deep copy of fake ones crashes when it is collected."""
    made = nn.Module()
    for name, parameter in module.named_parameters():
        twin = nn.Parameter(torch.empty_like(parameter), requires_grad=False)
        made.register_parameter(name.replace(".", "_"), twin)
    return made


def _saved(heads: Sequence[str], training: Training) -> Sequence[str]:
    """Modules that train whole."""
    if training.modules_to_save is not None:
        return training.modules_to_save
    return [] if training.predicts_tokens else heads


def _adapted(base: nn.Module, training: Training) -> nn.Module:
    if not training.dynamic:
        dtype = training.adapter_dtype or torch.float32
        return _PEFTLinear(base, training.rank, training.dropout, dtype)
    layer = DynamicLoRALinear(base, training.rank, dropout=training.dropout)
    layer.set_rank(training.rank)
    if training.adapter_dtype not in (None, layer.lora_A.dtype):
        for name in ("lora_A", "lora_B"):
            factor = torch.empty_like(getattr(layer, name), dtype=training.adapter_dtype)
            setattr(layer, name, nn.Parameter(factor))
    return layer


class _PEFTLinear(nn.Module):
    """PEFT's LoRA layer: its tensors, in its order of operations.

    PEFT itself converts modules in place, which fake tensors do not survive.
    """

    def __init__(self, base: nn.Module, rank: int, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        width, out = linear_shape(base) or (0, 0)
        self.base_layer = base
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.lora_A = nn.Linear(width, rank, bias=False, dtype=dtype)
        self.lora_B = nn.Linear(rank, out, bias=False, dtype=dtype)

    @override
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        x = x.to(self.lora_A.weight.dtype)  # PEFT casts under autocast, too
        return (result + self.lora_B(self.lora_A(self.dropout(x))) * 2.0).to(result.dtype)


__all__ = ["Networks", "equal_layers", "layer_stack", "make_networks"]
