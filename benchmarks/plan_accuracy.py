"""Is `lightning-kd plan` right? Predicted peaks beside measured and published ones.

Measured: training steps of a SmolLM2-135M-shaped Llama (30 layers, random weights) on this CPU,
each in a process of its own, as resident memory and as bytes of torch's allocator. Published: rows
of litgpt's tables for one GPU (`benchmarks/litgpt_rows.py`), runs of 2023 and 2024 with the
bitsandbytes of that time. Ratios are predicted / measured; the headline is the median error over
litgpt's rows.

    python benchmarks/plan_accuracy.py
    python benchmarks/plan_accuracy.py --only tables
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import Check, Spread, report
from benchmarks.litgpt_rows import rows, training_of
from benchmarks.plan_measuring import (
    allocated_peak,
    in_a_process,
    language_model_step,
    resident,
    resident_peak,
)
from lightning_kd.planning import Plan, Training, plan_memory


def smollm() -> Any:
    """The shape of SmolLM2-135M."""
    import transformers

    return transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip


def cases() -> dict[str, Training]:
    """What is measured, by name."""
    common: dict[str, Any] = {"student": smollm(), "device": "cpu", "batch_size": 2, "length": 256}
    lora: dict[str, Any] = {"train": "adapter", "rank": 16, "target_modules": "all-linear"}
    return {
        "all weights": Training(**common),
        "all weights, checkpointing": Training(**common, checkpointing=True),
        "all weights, 1 x 32": Training(**{**common, "batch_size": 1, "length": 32}),
        "LoRA": Training(**common, **lora),
        "LoRA, checkpointing": Training(**common, **lora, checkpointing=True),
        "QLoRA": Training(**common, **lora, quantization="nf4"),
    }


def measure(name: str) -> dict[str, int]:
    """Bytes of a case: resident, and of the allocator for one step beyond what was there."""
    torch.set_num_threads(1)
    training = cases()[name]
    small = Training(**{**vars(training), "batch_size": 1, "length": 2})
    language_model_step(small)()  # libraries and their buffers
    baseline = resident()
    step = language_model_step(training)
    step()
    return {"resident": resident_peak(step, baseline), "allocated": allocated_peak(step)}


def predicted_step(plan: Plan) -> int:
    """Of a plan, what a step makes and drops."""
    made = ("gradients", "activations", "logits", "working memory")
    return sum(plan.parts.get(name, 0) for name in made)


def on_this_machine() -> tuple[list[float], list[float]]:
    """Predicted / measured of every case: resident, and of one step's allocations."""
    ratios: tuple[list[float], list[float]] = [], []
    print(
        f"\n{'SmolLM2-135M shape, GB':28} | resident: plan  measured  ratio | step: plan  measured"
    )
    for name, training in cases().items():
        plan, found = plan_memory(training), in_a_process(name)
        step = predicted_step(plan)
        ratios[0].append(plan.total / found["resident"])
        ratios[1].append(step / found["allocated"])
        print(
            f"{name:28} | {plan.total / 1e9:14.3f} {found['resident'] / 1e9:9.3f} "
            f"{ratios[0][-1]:6.3f} | {step / 1e9:10.3f} {found['allocated'] / 1e9:9.3f}",
            flush=True,
        )
    return ratios


def against_tables() -> list[float]:
    """Predicted / published of every row; the framework's share is in neither."""
    ratios = []
    print(f"\n{'litgpt, GB':44} | plan  published  ratio")
    for row in rows():
        plan = plan_memory(training_of(row))
        made = (plan.total - plan.parts["framework (estimate)"]) / 1e9
        ratios.append(made / row.gigabytes)
        kind = {"": "LoRA", "all": "all weights"}.get(row.quantization, f"LoRA, {row.quantization}")
        name = f"{row.source}: {row.model}, {kind}, batch {row.batch_size}"
        print(f"{name:44} | {made:5.2f} {row.gigabytes:9.2f} {ratios[-1]:7.3f}", flush=True)
    return ratios


def errors(ratios: list[float]) -> Spread:
    """Median and quartiles of |ratio - 1|."""
    return Spread.of([abs(value - 1) for value in ratios])


def main() -> None:
    """Predict, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("tables", "machine"))
    parser.add_argument("--measure", choices=tuple(cases()), help="one case, as JSON")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    checks, facts = [], {}
    parts: dict[str, Callable[[], Any]] = {"tables": against_tables, "machine": on_this_machine}
    found = {name: run() for name, run in parts.items() if given.only in (None, name)}
    if "tables" in found:
        checks.append(Check("median error, litgpt's rows", errors(found["tables"]), 0.10))
        facts["rows"] = len(found["tables"])
        facts["median ratio"] = round(statistics.median(found["tables"]), 4)
    if "machine" in found:
        for name, ratios in zip(("resident", "allocated"), found["machine"], strict=True):
            worst = max(abs(value - 1) for value in ratios)
            checks.append(Check(f"largest error, {name} bytes here", Spread.of([worst]), 0.10))
    report("plan_accuracy", checks[0], *checks[1:], facts=facts)


if __name__ == "__main__":
    main()
