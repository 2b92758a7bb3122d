"""For every constructor argument another value, and where its effect is to be looked for.

A new argument must be entered here: the conformance matrix fails on one that is missing, and on
one whose other value changes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import SGD

from lightning_kd import methods
from lightning_kd.methods import DyLoRA, TaskModule
from lightning_kd.nested import Nested
from tests import tiny
from tests.conformance.matrix import TinyData, fit, trainer, weights

Observe = Callable[[TaskModule], Any]


def after_training(module: TaskModule) -> Any:
    """All weights after six optimizer steps."""
    fit(module, max_steps=6)
    return {name: value.tolist() for name, value in weights(module).items()}


def at_start(module: TaskModule) -> Any:
    """All weights before any step, by name."""
    return {name: value.tolist() for name, value in weights(module).items()}


def trainable_names(module: TaskModule) -> Any:
    """Which weights train."""
    return [name for name, p in module.named_parameters() if p.requires_grad]


def forward_passes(module: TaskModule) -> Any:
    """How often validation asks the student about one batch."""
    calls = []
    hook = module.student.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        list(module.predictions(tiny.batch(4, module.task)))
    hook.remove()
    return len(calls)


def reported_sizes(module: TaskModule) -> Any:
    """The sizes that validation reports."""
    run = trainer()
    data = TinyData(module.task)
    return sorted(run.validate(module, datamodule=data, verbose=False)[0])


def predicted_at(module: TaskModule) -> Any:
    """The size in use while the predict stage answers a batch."""
    assert isinstance(module, Nested)
    used: list[int] = []
    hook = module.student.register_forward_pre_hook(lambda *_: used.append(module.size))
    with torch.no_grad():
        module.predict_step(tiny.batch(4, module.task), 0)
    hook.remove()
    return used


def draws_of_two_processes(module: TaskModule) -> Any:
    """The first sizes drawn by processes 0 and 1."""
    assert isinstance(module, DyLoRA)
    return [[module.sampler.draw(step, process) for step in range(20)] for process in (0, 1)]


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
class Exported:
    """Stands for the folder of an adapter of rank 2 that the method itself exported."""

    def write(self, name: str, folder: Any) -> str:
        """Export it."""
        tiny.method(name, seed=5, max_rank=2).export(folder, 2)
        return str(folder)


ARGUMENTS: dict[str, dict[str, Change]] = {
    "TaskModule": {
        "student": Change(tiny.model(seed=1), at_start),
        "task": Change(tiny.TASKS["regression"]),
        "learning_rate": Change(0.1),
        "weight_decay": Change(0.9),
        "warmup_fraction": Change(0.5),
        "lr_schedule": Change("constant"),
        "optimizer": Change(lambda parameters: SGD(parameters, lr=0.1)),
    },
    "FineTuning": {"train": Change("head")},
    "LoRA": {
        "rank": Change(2),
        "alpha": Change(1.0),
        "rslora": Change(True),
        "target_modules": Change(["key"], trainable_names),
        "modules_to_save": Change(["classifier"], trainable_names),
        "dropout": Change(0.5),
    },
    "DyLoRA": {
        "max_rank": Change(3),
        "min_rank": Change(3),
        "alpha": Change(1.0),
        "scaling": Change("alpha/R"),
        "update": Change("full"),
        "sampler": Change([2, 4]),
        "geometric_p": Change(0.05, given={"sampler": "geometric"}),
        "rank_sync": Change(
            "per_process", draws_of_two_processes, given={"optimizer_semantics": "dense"}
        ),
        "optimizer_semantics": Change("dense"),
        "target_modules": Change(["key"], trainable_names),
        "modules_to_save": Change(["classifier"], trainable_names),
        "dropout": Change(0.5),
        "evaluation": Change("sweep", forward_passes),
        "evaluation_ranks": Change([1, 4], reported_sizes),
        "predict_rank": Change(1, predicted_at),
        "adapter": Change(Exported(), at_start),
        "seed": Change(7),
    },
}


def change_of(name: str, argument: str) -> Change | None:
    """The entry of the method itself, or of what it inherits from."""
    for owner in getattr(methods, name).__mro__:
        found = ARGUMENTS.get(owner.__name__, {}).get(argument)
        if found is not None:
            return found
    return None
