"""Plans against what torch's allocator hands out in real steps, and against published peaks."""

import statistics
from typing import Any

import pytest
import torch

from benchmarks.litgpt_rows import rows, training_of
from benchmarks.plan_accuracy import predicted_step
from benchmarks.plan_measuring import allocated_peak, language_model_step
from lightning_kd.methods import DyLoRA, FineTuning, TaskModule
from lightning_kd.planning import plan_memory
from tests import tiny
from tests.planning.shapes import bert, training

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
