"""Peaks of real training steps on this CPU: of torch's allocator, and resident."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lightning_kd.planning.training import Training

Step = Callable[[], object]


def allocated_peak(step: Step) -> int:
    """Most bytes that ``step`` had from torch's allocator at a time, above the start."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    results: Any = profiled.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def resident_peak(step: Step, baseline: int) -> int:
    """Most resident bytes of the process during one call of ``step``, above ``baseline``."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest value so far
    step()
    return resident("VmHWM") - baseline


def resident(field: str = "VmRSS") -> int:
    """Resident bytes of this process, now (``VmRSS``) or at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field))
    return 1024 * int(line.split()[1])


def language_model_step(training: Training) -> Step:
    """A step of a language model with random weights, as `Training` describes it.

    Its second call is like all that follow: the optimizer has its moments.
    """
    import transformers

    torch.manual_seed(0)
    made: Any = transformers.AutoModelForCausalLM
    model: Any = made.from_config(training.student)
    model.train()
    if training.train == "adapter":
        model = adapted(model, training)
    if training.checkpointing:
        model.config.use_cache = False
        newer = getattr(model, "activation_checkpointing_enable", None)
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), fused=True)
    tokens = torch.randint(5, 60, (training.batch_size, training.length))
    batch: dict[str, Tensor] = {"input_ids": tokens, "labels": tokens}
    if training.has_mask:
        batch["attention_mask"] = torch.ones_like(tokens)
        batch["attention_mask"][0, 0] = 0  # a batch without padding is masked by the kernel alone

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        # Here, so that what is measured frees nothing that was there before it.
        optimizer.zero_grad()

    return step


def adapted(model: nn.Module, training: Training) -> nn.Module:
    """The model with PEFT's adapter, on 4-bit weights where the training has them."""
    from peft import LoraConfig, get_peft_model

    if training.quantization is not None:
        quantize(model, training)
    config = LoraConfig(
        r=training.rank,
        target_modules=training.target_modules,  # type: ignore[arg-type]
        lora_dropout=training.dropout,
    )
    return get_peft_model(model, config)


def quantize(model: nn.Module, training: Training) -> None:
    """Put bitsandbytes' layers in the place of all linear ones but the head."""
    import bitsandbytes as bnb

    four_bit: Any = vars(bnb.nn)["Linear4bit"]
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear) or name == "lm_head":
            continue
        made = four_bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            quant_type=str(training.quantization),
            compress_statistics=training.double_quant,
            compute_dtype=training.compute_dtype,
        )
        made.load_state_dict(layer.state_dict())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made.to("cpu").requires_grad_(False))  # noqa: FBT003


def in_a_process(name: str) -> dict[str, int]:
    """What `benchmarks.plan_accuracy` measures of a case, alone in a process of its own."""
    # Small blocks come from the system one by one and go back at once, so that resident is in use.
    tight = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-m", "benchmarks.plan_accuracy", "--measure", name]
    ran = subprocess.run(
        command, env={**os.environ, **tight}, capture_output=True, text=True, check=True
    )
    found: dict[str, int] = json.loads(ran.stdout.splitlines()[-1])
    return found
