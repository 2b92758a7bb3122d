"""QDyLoRA: a dynamic adapter on a frozen base in four bits.

Rajabzadeh, Valipour, Zhu, Tahaei, Kwon, Ghodsi, Chen, Rezagholizadeh, "QDyLoRA: Quantized Dynamic
Low-Rank Adaptation for Efficient Large Language Model Tuning", EMNLP 2024 Industry Track, arXiv
2402.10462. QLoRA's base (NF4, double quantization) under DyLoRA's adapter: each optimizer step
draws a rank b and trains the adapter cut to its first b components, one fine-tuning for all ranks.

No code of the authors was found. What training draws from (1 to 64, or a few of these) the text
leaves open: ``sampler`` takes either. Adapters are in fp32. Dynamic ranks save no memory in
training: all R components have their gradients and moments; what they save is runs. Left out:
merging into four bits, which rounds again (`merged_student` makes a dense model instead).
"""

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_kd.functional.dynamic_lora import LoRAScaling
from lightning_kd.functional.four_bit import FourBit
from lightning_kd.methods.base import LRSchedule
from lightning_kd.methods.dylora import DyLoRA
from lightning_kd.models import head_modules
from lightning_kd.nn import DynamicLoRALinear, replace_modules
from lightning_kd.nn.four_bit_linear import is_four_bit, set_compute_dtype
from lightning_kd.optim import decay_groups
from lightning_kd.paper import Paper
from lightning_kd.quantization import (
    Backend,
    ComputeDtype,
    check_device,
    choose_compute_dtype,
    dequantize,
    paged_adamw,
    quantize,
    widen,
)
from lightning_kd.tasks import Task


class QDyLoRA(DyLoRA):
    """DyLoRA whose frozen linear layers keep four bits of every weight.

    Args:
        student: See `TaskModule`; its linear layers but the head are quantized here, in place.
        task: See `TaskModule`.
        max_rank: See `DyLoRA`.
        alpha: See `DyLoRA`.
        scaling: See `DyLoRA`. With ``alpha/b`` the factor is ``max_rank`` times as large at rank 1.
        update: See `DyLoRA`.
        optimizer_semantics: See `DyLoRA`; ``dense`` may be paged.
        target_modules: PEFT's vocabulary; all quantized layers by default.
        dropout: See `DyLoRA`.
        evaluation_ranks: None: of a list of ranks all, else the powers of two and the largest.
        quantization: ``nf4`` or ``fp4``.
        double_quant: Keep block scales in 8 bits: 4.13 instead of 4.5 bits a weight.
        compute_dtype: Of products with the base. ``auto``: what a mixed precision casts to, else
            bfloat16 on a GPU that has it, else float32; says why.
        backend: ``bitsandbytes``, or ``reference``: plain tensors on every device.
        gradient_checkpointing: Recompute layers in the backward pass instead of keeping them.
        paged_optimizer: AdamW whose states may move to the host's memory. None: where there is one
            (CUDA, dense, bitsandbytes), and says so where not; True: that, or an error.
        learning_rate: See `TaskModule`.
        weight_decay: See `TaskModule`.
        warmup_fraction: See `TaskModule`.
        lr_schedule: See `TaskModule`.
        kwargs: See `DyLoRA` and `TaskModule`.

    Raises:
        ValueError: See `DyLoRA`; a device or a strategy without four-bit layers or paging; a model
            without gradient checkpointing.
        ImportError: bitsandbytes is not installed.
    """

    paper = Paper(
        title="QDyLoRA: Quantized Dynamic Low-Rank Adaptation",
        venue="EMNLP 2024 Industry",
        arxiv="2402.10462",
        tasks="Alpaca, GSM8k, TriviaQA",
        recipe="qdylora_alpaca",
        ours="reviews, SmolLM2's top, perplexity: 66.1-68.2 over ranks, QLoRA 65.6-65.9 "
        "(docs/evidence/qdylora.md)",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a user sets on the command line
        self,
        student: str | nn.Module,
        task: str | Task,
        max_rank: int = 64,
        alpha: float = 16.0,
        scaling: LoRAScaling = "alpha/b",
        update: Literal["frozen", "full"] = "full",
        optimizer_semantics: Literal["strict", "dense"] = "dense",
        target_modules: str | list[str] | None = "all-linear",
        dropout: float = 0.1,
        evaluation_ranks: list[int] | None = None,
        quantization: FourBit = "nf4",
        double_quant: bool = True,
        compute_dtype: ComputeDtype = "auto",
        backend: Backend = "bitsandbytes",
        gradient_checkpointing: bool = True,
        paged_optimizer: bool | None = None,
        learning_rate: float = 2e-4,
        weight_decay: float = 0.0,
        warmup_fraction: float = 0.03,
        lr_schedule: LRSchedule = "constant",
        **kwargs: Any,
    ) -> None:
        if paged_optimizer and optimizer_semantics == "strict":
            raise ValueError(
                "paged_optimizer needs optimizer_semantics=dense: a paged optimizer moves every "
                "component, the strict one only those of the drawn rank"
            )
        if paged_optimizer and kwargs.get("optimizer") is not None:
            raise ValueError(
                "an optimizer is given, which paged_optimizer=True would replace; drop one"
            )
        # Before super().__init__(), which makes the student and asks `prepare_base` for the rest.
        self.quantization, self.double_quant = quantization, double_quant
        self.compute_dtype, self.backend = compute_dtype, backend
        self.gradient_checkpointing, self.paged_optimizer = gradient_checkpointing, paged_optimizer
        super().__init__(
            student,
            task,
            max_rank=max_rank,
            alpha=alpha,
            scaling=scaling,
            update=update,
            optimizer_semantics=optimizer_semantics,
            target_modules=target_modules,
            dropout=dropout,
            evaluation_ranks=evaluation_ranks,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_fraction=warmup_fraction,
            lr_schedule=lr_schedule,
            **kwargs,
        )
        if evaluation_ranks is None and not isinstance(kwargs.get("sampler"), list):
            largest = self._candidates[-1]
            powers = [rank for rank in self._candidates if rank & (rank - 1) == 0]
            self._evaluation_ranks = sorted({*powers, largest})

    @override
    def prepare_base(self, heads: Sequence[str]) -> Sequence[str]:
        dtype, _ = choose_compute_dtype(self.compute_dtype, self.device)
        bare = sorted({*heads, *head_modules(self.student)})
        quantize(
            self.student,
            self.quantization,
            double_quant=self.double_quant,
            compute_dtype=dtype,
            backend=self.backend,
            exclude=bare,
        )
        for name, module in self.student.named_modules():
            if any(f".{name}".endswith(f".{head}") for head in heads):
                widen(module)  # what trains whole
        if self.gradient_checkpointing:
            self._checkpoint_layers()
        return bare

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        strategy = self.trainer.strategy
        if getattr(strategy, "zero_stage_3", False):  # of FSDP `mark_matrices` says so
            raise ValueError(
                f"{type(strategy).__name__} would shard codes as if they were weights in stage 3; "
                "use the ddp strategy, or stage 2"
            )
        device = strategy.root_device
        check_device(device, self.backend)
        precision = str(self.trainer.precision)
        dtype, why = choose_compute_dtype(self.compute_dtype, device, precision)
        for module in self.student.modules():
            if is_four_bit(module):
                set_compute_dtype(module, dtype)
        if stage == "fit":
            self._say("compute_dtype", f"{str(dtype).removeprefix('torch.')}: {why}")

    @override
    def make_optimizer(self) -> Optimizer:
        refused = self._no_paging()
        if refused is None:
            groups = decay_groups(self.named_parameters(), self.weight_decay)
            return paged_adamw(groups, self.learning_rate)
        if self.paged_optimizer:
            raise ValueError(
                f"paged_optimizer=True, but {refused}; leave it out to train with AdamW in the "
                "device's own memory"
            )
        if self.paged_optimizer is None and self.semantics == "dense":
            self._say("optimizer", f"AdamW in the device's own memory: {refused}")
        return super().make_optimizer()

    def merged_student(self, rank: int) -> nn.Module:
        """A dense fp32 copy of the student with the adapters, cut at ``rank``, in its weights.

        It is computed from the codes; quantizing it again is not the same model.
        """
        self._any_adapter.check_rank(rank)
        made = copy.deepcopy(self.student)
        dequantize(made)
        layers = [n for n, m in made.named_modules() if isinstance(m, DynamicLoRALinear)]

        def merged(layer: nn.Module) -> nn.Module:
            assert isinstance(layer, DynamicLoRALinear)  # noqa: S101
            layer.merge(rank)
            return layer.base_layer

        replace_modules(made, layers, merged)
        return made

    def _no_paging(self) -> str | None:
        """Why the optimizer is not paged; None where it is."""
        if self.paged_optimizer is False or self.semantics == "strict":
            return "it was not asked for"
        if self.device.type != "cuda":
            return f"there is no paged AdamW on {self.device.type}"
        if importlib.util.find_spec("bitsandbytes") is None:
            return "there is no paged AdamW without bitsandbytes (`pip install -e .[quant]`)"
        return None

    def _checkpoint_layers(self) -> None:
        student: Any = self.student
        if not getattr(student, "supports_gradient_checkpointing", False):
            raise ValueError(
                f"{type(student).__name__} has no gradient checkpointing; "
                "set --model.gradient_checkpointing false"
            )
        # Adapters of the first layer get gradients although nothing below them trains: this variant
        # sees what a layer holds, the reentrant one only what it is given.
        enable = getattr(student, "activation_checkpointing_enable", None)
        (enable or student.gradient_checkpointing_enable)({"use_reentrant": False})

    def _say(self, what: str, said: str) -> None:
        self.notes[what] = said
        if self._trainer is None or self._trainer.is_global_zero:
            print(f"{type(self).__name__}: {what}: {said}")  # noqa: T201 - what a user must know


__all__ = ["QDyLoRA"]
