"""What the conformance matrix looks at to see that an argument has an effect."""

from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_kd.methods import ContinuationKD, DistillationModule, DyLoRA, ProKD, TaskModule
from lightning_kd.nested import Nested
from lightning_kd.progress import Progress
from tests import tiny
from tests.conformance.matrix import TinyData, fit, trainer, weights


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


def the_task(module: TaskModule) -> Any:
    """The name of the task."""
    return module.task.name


class _Products(TorchDispatchMode):
    """Counts the matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "mm" in func.name()
        return func(*args, **(kwargs or {}))


def products(module: TaskModule) -> Any:
    """How many matrix products the objective takes."""
    with _Products() as counted:
        module.objective(tiny.batch(4, module.task))
    return counted.count


def kinds_of_layers(module: TaskModule) -> Any:
    """The classes of the student's layers."""
    return sorted({type(inner).__name__ for inner in module.student.modules()})


def forward_passes_of_a_layer(module: TaskModule) -> Any:
    """How often a training step asks a linear layer about one batch."""
    assert isinstance(module, DyLoRA)
    calls: list[int] = []
    layer = next(iter(module.adapters.values()))
    hook = layer.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.autograd.backward(list(module.objective(tiny.batch(4, module.task)).values()))
    hook.remove()
    return len(calls)


def refusal(module: TaskModule) -> Any:
    """Why a training does not begin; None where it does."""
    try:
        fit(module, max_steps=1)
    except ValueError as error:
        return str(error)
    return None


def draws_of_two_processes(module: TaskModule) -> Any:
    """The first sizes drawn by processes 0 and 1."""
    assert isinstance(module, DyLoRA)
    return [[module.sampler.draw(step, process) for step in range(20)] for process in (0, 1)]


def how_the_teacher_loads(module: TaskModule) -> Any:
    """The types of its weights when it is loaded by name, or why it cannot be."""
    assert isinstance(module, DistillationModule)
    module.teach_with(tiny.named_model())
    try:
        module.load_teacher()
    except (ImportError, ValueError) as error:
        return str(error)
    assert module.teacher is not None
    return sorted({str(p.dtype) for p in module.teacher.module.parameters()})


def answers_kept(module: TaskModule) -> Any:
    """Whether the teacher's answers are in a cache after an epoch."""
    fit(module, max_steps=3)
    assert isinstance(module, DistillationModule)
    return module.cache is not None and module.cache.complete


def planned(module: TaskModule) -> Any:
    """The phases of the training."""
    return list(module.phases)


def recorder(module: TaskModule) -> Any:
    """How often the training of the run's own teacher is recorded."""
    assert isinstance(module, ProKD)
    with TemporaryDirectory() as folder:
        (watcher,) = module.watch_teacher(Path(folder), epochs=2)
    return vars(watcher)["every_n_steps"]


def temperatures(module: TaskModule) -> Any:
    """The temperature of each of six epochs."""
    assert isinstance(module, ContinuationKD)
    schedule = module.schedule.schedules["temperature"]
    return [schedule(Progress(0, None, epoch, max_epochs=6)) for epoch in range(6)]


def after_refining(module: TaskModule) -> Any:
    """All weights after six steps, with the folds' answers out of the way."""
    with TemporaryDirectory() as folder, chdir(folder):
        return after_training(module)


def answers_in_the_run(module: TaskModule) -> Any:
    """Names of the files with answers of folds that a training leaves in its own folder."""
    with TemporaryDirectory() as folder, chdir(folder):
        fit(module, max_steps=1)
        return sorted(path.name for path in Path().rglob("*.npz"))
