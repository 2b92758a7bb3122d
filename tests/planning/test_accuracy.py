"""Plans against what torch's allocator hands out in real steps, and against published peaks."""

import copy
import statistics
from typing import Any

import pytest
import torch

from benchmarks.litgpt_rows import rows, training_of
from benchmarks.plan_accuracy import predicted_step
from benchmarks.plan_measuring import allocated_peak, language_model_step
from lightning_kd.methods import DyLoRA, FineTuning, QDyLoRA, TaskModule
from lightning_kd.models import load_model
from lightning_kd.planning import plan_memory
from lightning_kd.planning.live import tensor_bytes
from tests import tiny
from tests.planning.shapes import bert, language_model, training

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*profiler.*:UserWarning"),
]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"checkpointing": True},
        {"batch_size": 1, "length": 8},
        {"train": "adapter", "rank": 4, "target_modules": "all-linear"},
    ],
)
def test_a_language_models_step(changes) -> None:
    planned = training(**changes)
    step = language_model_step(planned)
    step()
    assert predicted_step(plan_memory(planned)) == pytest.approx(allocated_peak(step), rel=0.1)


@pytest.mark.parametrize("name", ["FineTuning", "DyLoRA"])
def test_a_methods_step(name) -> None:
    task, student = tiny.TASKS["classification"], tiny.model()
    planned: dict[str, Any] = {}
    module: TaskModule = FineTuning(student, task)
    if name == "DyLoRA":
        module, planned = DyLoRA(student, task, max_rank=4), {"train": "adapter", "dynamic": True}
    module.train()
    optimizer = module.make_optimizer()
    tokens = torch.ones(8, 16, dtype=torch.long)
    mask = torch.ones_like(tokens)
    mask[0, 0] = 0  # as of a padded batch
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": torch.zeros(8).long()}

    def step() -> None:
        torch.stack(list(module.objective(batch).values())).sum().backward()

    step()
    optimizer.step()
    optimizer.zero_grad()
    plan = plan_memory(bert(**planned, rank=4))
    assert predicted_step(plan) == pytest.approx(allocated_peak(step), rel=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_on_four_bits_in_half_precision(precision) -> None:
    pytest.importorskip("bitsandbytes")
    config, task = language_model(hidden_size=64, dtype="bfloat16"), tiny.TASKS["text"]
    student = load_model(copy.deepcopy(config), task).bfloat16()
    module = QDyLoRA(student, task, max_rank=8, compute_dtype="bfloat16").train()
    module.student.config.use_cache = False  # type: ignore[union-attr]
    tokens = torch.ones(8, 32, dtype=torch.long)
    batch = {"input_ids": tokens, "attention_mask": tokens.clone(), "labels": tokens}
    batch["attention_mask"][0, 0] = 0

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            loss = torch.stack(list(module.objective(batch).values())).sum()
        loss.backward()
        for factor in module.parameters():
            factor.grad = None

    step()
    planned = training(
        student=config, task=task, batch_size=8, length=32, train="adapter", dynamic=True, rank=8,
        target_modules="all-linear", dropout=0.1, quantization="nf4", precision=precision,
        compute_dtype=torch.bfloat16, checkpointing=True,
    )  # fmt: skip
    plan = plan_memory(planned)
    assert predicted_step(plan) == pytest.approx(allocated_peak(step), rel=0.1)
    held = tensor_bytes(p for n, p in module.student.named_parameters() if "lora" not in n)
    kinds = ("weights, bfloat16", "weights, float32", "weights, 4 bits")
    rotary = 2 * 4 * 8
    assert sum(plan.parts[kind] for kind in kinds) - held == pytest.approx(rotary, abs=64)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_litgpts_published_peaks() -> None:
    errors = []
    for row in rows():
        plan = plan_memory(training_of(row))
        made = (plan.total - plan.parts["framework (estimate)"]) / 1e9
        errors.append(abs(made / row.gigabytes - 1))
    assert len(errors) == 37
    assert statistics.median(errors) <= 0.10
    assert max(errors) <= 0.25
