"""Constructor arguments whose effect shows elsewhere than in the trained weights, and where.

A new argument is entered here or, mostly, with a mere value in `tests/tiny.py`: the conformance
matrix fails on one that is missing, and on one whose other value changes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch.optim import SGD

from lightning_kd import methods
from lightning_kd.methods import TaskModule
from lightning_kd.paper_schedules import StepPsi
from lightning_kd.tasks import CausalLM
from tests import tiny
from tests.conformance.observations import (
    after_refining,
    after_training,
    answers_in_the_run,
    answers_kept,
    at_start,
    draws_of_two_processes,
    forward_passes,
    forward_passes_of_a_layer,
    how_the_teacher_loads,
    kinds_of_layers,
    planned,
    predicted_at,
    products,
    recorder,
    refusal,
    reported_sizes,
    temperatures,
    the_task,
    trainable_names,
)
from tests.trajectories import trajectory

Observe = Callable[[TaskModule], Any]


@dataclass(frozen=True)
class Change:
    """Another value of an argument, and what must differ because of it.

    Attributes:
        value: Unlike the default.
        observe: Looks at a module made with it, and at one made without; the two must differ.
        given: Other arguments that both are made with.
    """

    value: Any
    observe: Observe = after_training
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """A value that is made for each test: from the method's name and an empty folder."""

    make: Callable[[str, Path], Any]


def _bitsandbytes(*_: Any) -> str:
    pytest.importorskip("bitsandbytes")
    return "bitsandbytes"


def _wide() -> str:
    return tiny.named_model(hidden_size=64, intermediate_size=64)


def _exported(name: str, folder: Path) -> str:
    """The folder of an adapter of rank 2 that the method itself trained and exported."""
    tiny.filled(tiny.method(name, max_rank=2)).export(folder / "adapter", 2)
    return str(folder / "adapter")


SMOOTHED = {"teacher": None, "regularizer": "label_smoothing"}
FLATTENED = {"teacher": None, "regularizer": "tf_reg"}
CO_DISTILL = {"mitigation": "co_distill", "noise_rate": 0.3}
SIX_BLOCKS = {"exits": None, "exit_start": 1, "student": tiny.named_model("llama", 6)}
REFINE = {"mitigation": "label_refine", "fold_learning_rate": 0.05}

ARGUMENTS: dict[str, dict[str, Change]] = {
    "TaskModule": {
        "student": Change(
            Made(lambda name, _: tiny.model(task=tiny.task_for(name), seed=1)), at_start
        ),
        "optimizer": Change(lambda parameters: SGD(parameters, lr=0.1)),
        "student_layers": Change(1, at_start),
        "student_init": Change("random", at_start, given={"student": tiny.named_model()}),
    },
    "DistillationModule": {
        "teacher": Change(Made(lambda *_: tiny.model(seed=3))),
        "teacher_bits": Change(4, how_the_teacher_loads, given={"teacher": tiny.named_model()}),
        "teacher_cache": Change(Made(lambda _, folder: str(folder / "cache")), answers_kept),
    },
    "AnnealingKD": {
        "teacher_epochs": Change(7, planned),
        "label_epochs": Change(3, planned),
        "best_from": Change("final_temperature", planned),
    },
    "ContinuationKD": {
        "margin_quantile": Change(0.9, given={"margin": "auto"}),
        "anneal_margin": Change(False, given={"margin": 15.0}),
        "anneal_over": Change("kd_epochs", temperatures, given={"psi": StepPsi(4)}),
        "hinge_level": Change("batch", given={"margin": 30.0}),
    },
    "LabelRegularization": {
        "regularizer": Change("none", given=SMOOTHED),
        "smooth_over": Change("wrong", given=SMOOTHED),
        "gold": Change(0.6, given=FLATTENED),
        "form": Change("released", given=FLATTENED),
        "multiplier": Change(7.0, given={**FLATTENED, "form": "released"}),
    },
    "LoRA": {
        "target_modules": Change(["key"], trainable_names),
        "modules_to_save": Change(["classifier"], trainable_names),
    },
    "NoisyLabelKD": {
        "mitigation": Change("co_distill", given={"noise_rate": 0.3}),
        "noise_rate": Change(0.6, given={**CO_DISTILL, "ramp_fraction": 0.01}),
        "ramp_fraction": Change(0.01, given=CO_DISTILL),
        "target": Change("teacher", given=CO_DISTILL),
        "seed": Change(7, given=CO_DISTILL),
        "refine": Change("filter", after_refining, given=REFINE),
        "threshold": Change(1.0, after_refining, given={**REFINE, "threshold": 0.0}),
        "blend": Change(0.1, after_refining, given={**REFINE, "refine": "soft"}),
        "folds": Change(3, after_refining, given=REFINE),
        "fold_epochs": Change(3, after_refining, given=REFINE),
        "fold_learning_rate": Change(1e-3, after_refining, given=REFINE),
        "fold_dir": Change(
            Made(lambda _, folder: str(folder / "folds")), answers_in_the_run, given=REFINE
        ),
    },
    "ProKD": {
        "trajectory": Change(Made(lambda *_: trajectory(tiny.model(seed=3)))),
        "record_every_n_steps": Change(5, recorder),
        "teacher_epochs": Change(7, planned),
        "label_epochs": Change(3, planned),
        "temperature_by": Change("epoch", given={"teacher_epochs": 4, "max_temperature": 4}),
        "seed": Change(1, given={"order": "shuffled"}),
        "best_from": Change("last_checkpoint", planned),
    },
    "SoFT": {
        "task": Change(CausalLM("dolly"), the_task),
        "exit_start": Change(1, reported_sizes, given={"exits": None}),
        "exit_every": Change(3, reported_sizes, given=SIX_BLOCKS),
        "evaluation_exits": Change([2], reported_sizes),
        "predict_exit": Change(1, predicted_at),
        "chunk_size": Change(1, products),
        "seed": Change(7, given={"loss": "random"}),
        "student_layers": Change(1, at_start, given={"exits": None}),
        "student_init": Change("random", at_start, given={"student": tiny.named_model("llama")}),
    },
    "DyLoRA": {
        "geometric_p": Change(0.05, given={"sampler": "geometric"}),
        "rank_sync": Change(
            "per_process", draws_of_two_processes, given={"optimizer_semantics": "dense"}
        ),
        "target_modules": Change(["key"], trainable_names),
        "modules_to_save": Change(["classifier"], trainable_names),
        "evaluation": Change("sweep", forward_passes),
        "evaluation_ranks": Change([1, 4], reported_sizes),
        "predict_rank": Change(1, predicted_at),
        "adapter": Change(Made(_exported), at_start),
    },
    "QDyLoRA": {
        "backend": Change(Made(_bitsandbytes), kinds_of_layers, given={"student": _wide()}),
        "gradient_checkpointing": Change(False, forward_passes_of_a_layer),
        "paged_optimizer": Change(True, refusal),
    },
}
"""Those whose effect is not simply other weights after training; all others: `tiny.ARGUMENTS`."""


def change_of(name: str, argument: str) -> Change | None:
    """The entry of the method itself, or of what it inherits from."""
    for owner in getattr(methods, name).__mro__:
        if argument in ARGUMENTS.get(owner.__name__, {}):
            return ARGUMENTS[owner.__name__][argument]
        if argument in tiny.ARGUMENTS.get(owner.__name__, {}):
            return Change(tiny.ARGUMENTS[owner.__name__][argument])
    return None
