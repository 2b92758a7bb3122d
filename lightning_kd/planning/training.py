"""What a training is, as far as its memory is concerned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from lightning_kd.tasks import Task

PRECISIONS = {
    "32-true": None, "16-true": torch.float16, "bf16-true": torch.bfloat16,
    "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16,
}  # fmt: skip
"""Lightning's names, and the half precision of each."""

OptimizerKind = Literal["adamw", "adamw_32bit", "adamw_8bit", "sgd_momentum", "sgd"]
"""Of torch (moments in a weight's own precision) or of bitsandbytes (moments in 32 or 8 bits)."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training whose memory is asked for.

    Attributes:
        student: A transformers config, or the name of a `lightning_kd.nn.CifarResNet`.
        task: What it learns; None: to predict the next token, with transformers' own loss.
        batch_size: Examples of one forward pass.
        length: Tokens of an example.
        train: ``all`` weights, those of the ``head``, or an ``adapter`` (and what
            ``modules_to_save`` says).
        rank: Of the adapter; for a dynamic one the largest: the tensors are whole at every rank.
        dynamic: Whether the adapter is DyLoRA's layer; else PEFT's.
        target_modules: See `lightning_kd.nn.match_linear_layers`.
        modules_to_save: Trained whole beside an adapter; None: the task's head (of a language model
            nothing).
        dropout: Of the adapter's input.
        adapter_dtype: None: fp32 on quantized and (PEFT) half weights.
        student_layers: See `lightning_kd.methods.TaskModule`.
        precision: Lightning's name.
        dtype: Of the weights that are not quantized; None: what ``precision`` (``-true``) says,
            else the config's.
        quantization: ``nf4`` or ``fp4`` for the linear layers outside the heads.
        quantize_head: Whether for the heads, too.
        double_quant: Whether their scales are quantized.
        compute_dtype: Of products with 4-bit weights.
        old_bitsandbytes: See `lightning_kd.planning.quantized.PlannedLinear4bit`.
        optimizer: See `OptimizerKind`.
        paged: Whether its moments may move to the host; they are counted all the same.
        fused: Whether it needs no temporary copy of the gradients.
        accumulate: Batches per optimizer step; with more than one the gradients are always there.
        late_zero_grad: Whether a step's gradients stay until the next forward pass has ended, as
            they do in Lightning.
        checkpointing: Keep only the inputs of blocks, and compute the rest again.
        teacher: A second, frozen model that answers the same batch.
        teacher_bits: 4: its matrices are NF4.
        exits: Places of a language model that answer, all through its head.
        logit_chunk: Tokens whose logits are in memory at once; None: all of them.
        averaged: Whether a running average of what trains is kept beside it.
        padded: Whether texts of a batch have unequal lengths, so that attention needs a mask; None:
            where there are several.
        device: ``cuda`` or ``cpu``, whose attention, dropout and autocast differ.

    Raises:
        ValueError: A number below 1, or an unknown precision, optimizer or quantization.
    """

    student: Any
    task: Task | None = None
    batch_size: int = 1
    length: int = 512
    train: Literal["all", "head", "adapter"] = "all"
    rank: int = 8
    dynamic: bool = False
    target_modules: str | Sequence[str] | None = None
    modules_to_save: Sequence[str] | None = None
    dropout: float = 0.0
    adapter_dtype: torch.dtype | None = None
    student_layers: int | Sequence[int] | None = None
    precision: str = "32-true"
    dtype: torch.dtype | None = None
    quantization: Literal["nf4", "fp4"] | None = None
    quantize_head: bool = False
    double_quant: bool = True
    compute_dtype: torch.dtype = torch.float32
    old_bitsandbytes: bool = False
    optimizer: OptimizerKind = "adamw"
    paged: bool = False
    fused: bool = True
    accumulate: int = 1
    late_zero_grad: bool = False
    checkpointing: bool = False
    teacher: Any = None
    teacher_bits: int | None = None
    exits: int = 1
    logit_chunk: int | None = None
    averaged: bool = False
    padded: bool | None = None
    device: Literal["cuda", "cpu"] = "cuda"

    def __post_init__(self) -> None:
        for name in ("batch_size", "length", "rank", "accumulate", "exits"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, known in (
            ("precision", tuple(PRECISIONS)),
            ("optimizer", get_args(OptimizerKind)),
            ("quantization", (None, "nf4", "fp4")),
            ("train", ("all", "head", "adapter")),
            ("device", ("cuda", "cpu")),
        ):
            if (value := getattr(self, name)) not in known:
                words = ", ".join(map(str, known))
                raise ValueError(f"{name} must be one of {words}, got {value!r}")
        if self.exits > 1 and self.logit_chunk is None:
            raise ValueError("several exits need a logit_chunk, for example 1024 tokens")
        if self.quantization is not None and self.train == "all":
            raise ValueError(
                f"{self.quantization} weights cannot be trained; train an adapter over them"
            )

    @property
    def predicts_tokens(self) -> bool:
        """Whether the model's answers are tokens of its vocabulary."""
        return self.task is None or self.task.auto_class == "AutoModelForCausalLM"

    @property
    def half(self) -> torch.dtype | None:
        """The half precision of the arithmetic."""
        if self.quantization is not None and self.compute_dtype != torch.float32:
            return self.compute_dtype
        return PRECISIONS[self.precision]

    @property
    def autocast(self) -> torch.dtype | None:
        """What mixed precision casts to."""
        return PRECISIONS[self.precision] if self.precision.endswith("-mixed") else None

    @property
    def has_mask(self) -> bool:
        """Whether attention reads a mask."""
        return self.batch_size > 1 if self.padded is None else self.padded

    def weight_dtype(self, config: Any) -> torch.dtype:
        """Precision of the weights that are not quantized."""
        whole = PRECISIONS[self.precision] if self.precision.endswith("-true") else None
        named = getattr(config, "dtype", None)
        if isinstance(named, str):
            named = getattr(torch, named)
        return self.dtype or whole or named or torch.float32


__all__ = ["PRECISIONS", "OptimizerKind", "Training"]
