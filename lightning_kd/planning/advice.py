"""What to change where a training does not fit: the recipe's own options, each with its effect."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from lightning_kd.planning.gpus import GPU
from lightning_kd.planning.memory import Plan, plan_memory
from lightning_kd.planning.training import Training
from lightning_kd.tasks import Image


class Option(NamedTuple):
    """Something to add to a recipe's command line.

    Attributes:
        words: To add.
        plan: With them.
    """

    words: str
    plan: Plan


def options(training: Training, settings: Mapping[str, Any], gpu: GPU) -> list[Option]:
    """Changes that save memory, the largest saving first.

    Args:
        training: What does not fit.
        settings: Of the recipe: an option that its method does not have is no advice.
        gpu: Decides the half precision.
    """
    now = plan_memory(training).total
    tried = [Option(w, plan_memory(changed)) for w, changed in _changes(training, settings, gpu)]
    return sorted((o for o in tried if o.plan.total < now), key=lambda option: option.plan.total)


def _changes(
    training: Training, settings: Mapping[str, Any], gpu: GPU
) -> Iterator[tuple[str, Training]]:
    model = settings["model"]
    if "gradient_checkpointing" in model and not training.checkpointing:
        yield "--model.gradient_checkpointing true", replace(training, checkpointing=True)
    if training.quantization is not None and not training.double_quant:
        yield "--model.double_quant true", replace(training, double_quant=True)
    if training.teacher is not None and training.teacher_bits is None and "teacher_bits" in model:
        yield "--model.teacher_bits 4", replace(training, teacher_bits=4)
    if training.precision == "32-true" and training.quantization is None:
        half = "bf16-mixed" if gpu.has_bf16 else "16-mixed"
        changed = replace(training, precision=half, fused=gpu.has_bf16)
        yield f"--trainer.precision {half}", changed
    if training.quantization is not None and training.compute_dtype is torch.float32:
        half = "bfloat16" if gpu.has_bf16 else "float16"
        changed = replace(training, compute_dtype=getattr(torch, half))
        yield f"--model.compute_dtype {half}", changed
    yield from _smaller(training)


def _smaller(training: Training) -> Iterator[tuple[str, Training]]:
    """Less of the same: shorter texts, fewer components, fewer examples at a time."""
    if not isinstance(training.task, Image) and training.length > 32:
        shorter = training.length // 2
        yield f"--data.max_length {shorter}", replace(training, length=shorter)
    if training.train == "adapter" and training.rank > 1:
        name = "max_rank" if training.dynamic else "rank"
        yield f"--model.{name} {training.rank // 2}", replace(training, rank=training.rank // 2)
    if training.batch_size > 1:
        fewer = training.batch_size // 2
        words = f"--data.batch_size {fewer} --trainer.accumulate_grad_batches "
        # The first batches of a step keep their gradients anyway where there are several.
        twice = training.accumulate * training.batch_size // fewer
        changed = replace(training, batch_size=fewer, accumulate=twice)
        yield f"{words}{twice}", changed


def notes(training: Training, plan: Plan) -> list[str]:
    """What a user should know of a plan besides its figures."""
    said = []
    if training.quantization is not None and training.compute_dtype is torch.float16:
        said.append(
            "fp16 compute in QLoRA is unstable: about a fifth of its LLaMA-7B runs failed (its "
            "README); --trainer.precision 32-true --model.compute_dtype float32 is safe and slower"
        )
    if plan.pageable:
        said.append(
            f"{plan.pageable / 1e9:.2f} GB of optimizer state are pageable: they can move to the "
            "host where memory is short, at the cost of time"
        )
    return said


__all__ = ["Option", "notes", "options"]
