"""Conformance 1, 2, 4 and 8: every method trains, overfits, and touches only what it may."""

import inspect
import math
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_kd import methods
from lightning_kd.frozen import Frozen
from lightning_kd.methods import AdapterModule, FineTuning, TaskModule
from lightning_kd.nested import Nested
from lightning_kd.tasks import CausalLM, Regression
from tests import tiny
from tests.conformance.matrix import (
    TinyData,
    Watch,
    differing,
    every_method,
    every_task,
    fit,
    frozen_networks,
    tensors_in,
    trainable,
    trainer,
    weights,
)


def test_every_method_is_named_and_has_a_tiny_constructor() -> None:
    classes = [thing for thing in vars(methods).values() if inspect.isclass(thing)]
    found = {c.__name__ for c in classes if issubclass(c, TaskModule) and not inspect.isabstract(c)}
    assert set(methods.METHODS) == found
    assert len(methods.METHODS) == len(found)
    assert set(tiny.METHODS) == found, "give the method a constructor in tests/tiny.py"


@every_task
@every_method
def test_trains_validates_tests_and_predicts(name, kind, tmp_path) -> None:
    task = tiny.TASKS[kind]
    module = tiny.method(name, task)
    before = weights(module)
    may_change = {*trainable(module), *dict(module.named_buffers())}  # statistics are no weights
    run = fit(module, folder=tmp_path)
    changed = set(differing(before, weights(module)))
    assert changed, "no weight moved"
    assert changed <= may_change
    found = {k: float(v) for k, v in run.callback_metrics.items()}
    sizes = module.evaluation_sizes if isinstance(module, Nested) else []
    parts = [f"{module.size_name}_{size}/" for size in sizes] + ["mean/"] if sizes else [""]
    wanted = {f"val/{part}{metric}" for part in parts for metric in task.metric_names}
    assert {key for key in found if key.startswith("val/")} == wanted
    assert module.monitor in found
    assert any(key.startswith("train/") for key in found)
    # a correlation of constant answers is undefined, all else is a number
    assert all(math.isfinite(v) for k, v in found.items() if not k.startswith("val/"))
    data = TinyData(task)
    tested = run.test(module, datamodule=data, verbose=False)
    assert {key for one in tested for key in one} == {k.replace("val/", "test/") for k in wanted}
    answers: Any = run.predict(module, datamodule=data)
    assert sorted(int(i) for batch in answers for i in batch["idx"]) == list(range(12))


@every_task
@every_method
def test_overfits_one_batch(name, kind) -> None:
    task = tiny.TASKS[kind]
    # a score per token or text collapses at the rate that a class bears
    rate, steps = (0.01, 120) if kind in ("choice", "spans") else (0.05, 60)
    settings: Any = {"learning_rate": rate, "weight_decay": 0.0, "lr_schedule": "constant"}
    batch = tiny.batch(4, task)
    if "teacher" in inspect.signature(getattr(methods, name)).parameters:
        settings["teacher"] = tiny.skilled_teacher(task)
    if kind == "text" and issubclass(getattr(methods, name), AdapterModule):
        # A frozen head: what is before it has to say something, and all of it to adapt.
        rate, steps = 0.02, 120
        settings |= {"learning_rate": rate, "spread": 1.0, "target_modules": "all-linear"}
    module = tiny.method(name, task, **settings)
    with torch.no_grad():
        at_first = float(task.hard_loss(module.predict(batch), batch).mean())
    loader = tiny.loader(4, 4, task)
    trainer(max_steps=steps, limit_val_batches=0).fit(module, loader, loader)
    module.eval()
    with torch.no_grad():
        for size, prediction, _ in module.predictions(batch):
            loss = float(task.hard_loss(prediction, batch).mean())
            # not to 0: a method may weigh this loss against others
            assert loss < at_first / 4, f"size {size}: from {at_first:.3f} to {loss:.3f} only"
            if "target_modules" in settings:
                continue
            if isinstance(task, CausalLM):  # of each text the tokens foreseen, and how many
                assert torch.equal(task.answers(prediction, batch)[:, 1].long(), task.truths(batch))
            elif not isinstance(task, Regression):
                assert torch.equal(task.answers(prediction, batch), batch["labels"])


@every_method
def test_student_is_in_train_mode_during_fit_also_after_validation(name) -> None:
    module = tiny.method(name)
    module.student.eval()  # as Hugging Face models arrive
    asleep: list[str] = []

    def look(watched: TaskModule) -> None:
        asleep.extend(n for n, m in watched.student.named_modules() if not m.training)

    run = fit(module, callbacks=[Watch(look)], val_check_interval=1)
    assert run.global_step == 4
    assert asleep == []


@every_method
def test_a_trainer_that_fitted_keeps_the_methods_callbacks_and_is_not_told_again(
    name, caplog
) -> None:
    module = tiny.method(name)
    run = fit(module, max_steps=1)
    before = list(vars(run)["callbacks"])
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        run.validate(module, datamodule=TinyData(module.task), verbose=False)
    assert vars(run)["callbacks"] == before
    assert "override" not in caplog.text


@every_method
def test_optimizer_holds_exactly_the_trainable_weights(name) -> None:
    module = tiny.method(name)
    run = fit(module)
    held = [p for optimizer in run.optimizers for g in optimizer.param_groups for p in g["params"]]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in trainable(module).values()}


@every_task
@every_method
def test_every_term_is_finite_and_reaches_a_trainable_weight(name, kind) -> None:
    task = tiny.TASKS[kind]
    module = tiny.method(name, task).train()
    for term, value in module.objective(tiny.batch(4, task)).items():
        assert value.shape == (), term
        assert torch.isfinite(value), term
        reached: Any = torch.autograd.grad(
            value, list(trainable(module).values()), retain_graph=True, allow_unused=True
        )
        given = [gradient for gradient in reached if gradient is not None]
        assert any(bool(g.any()) for g in given), f"{term} moves nothing"


def check_teacher(module: TaskModule, folder) -> None:
    """Bit-unchanged, in eval mode, and in nothing that trains, moves between processes or is saved.

    A method without an argument ``teacher`` must hold no `Frozen` at all.
    """
    networks = frozen_networks(module)
    assert bool(networks) == ("teacher" in inspect.signature(type(module)).parameters)
    hidden = [network.module for network in networks]
    before = [weights(network) for network in hidden]
    asleep: list[bool] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            asleep.extend(not m.training for network in hidden for m in network.modules())

    run = fit(module, folder=folder, callbacks=[Look()])
    assert all(asleep)
    theirs = {id(p) for network in hidden for p in network.parameters()}
    optimized = {id(p) for o in run.optimizers for g in o.param_groups for p in g["params"]}
    assert not theirs & {id(p) for p in module.parameters()}  # hence not in DDP's buckets either
    assert not theirs & optimized
    for network, old in zip(hidden, before, strict=True):
        assert differing(old, weights(network)) == []
        assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    saved = [t for f in files for t in tensors_in(torch.load(f, weights_only=True))]
    saved += list(module.state_dict().values())
    random = [w for old in before for w in old.values() if w.is_floating_point() and w.numel() > 1]
    for weight in (w for w in random if w.std() > 0):  # zeros and ones are in every network
        assert not any(t.shape == weight.shape and torch.equal(t, weight) for t in saved)


@every_method
def test_teacher_is_invisible_where_there_is_one(name, tmp_path) -> None:
    check_teacher(tiny.method(name), tmp_path)


class _Taught(FineTuning):
    """A stand-in for distillation methods; ``teacher`` is a seed, ``hide`` how it is held."""

    hide: ClassVar[type[Frozen]] = Frozen

    def __init__(self, student, task, teacher=1, **kwargs) -> None:
        super().__init__(student, task, **kwargs)
        self.teacher = self.hide(tiny.model(seed=teacher))

    def objective(self, batch):
        taught = self.task.predict(self.teacher, batch)
        student = self.predict(batch)
        return {"soft": self.task.soft_loss(student, taught, batch).mean()}


@pytest.mark.filterwarnings("ignore:Found .* eval mode")  # of the one that can be seen
def test_the_check_of_the_teacher_passes_a_hidden_one_and_fails_a_plain_one(tmp_path) -> None:
    task = tiny.TASKS["classification"]
    check_teacher(_Taught(tiny.model(), task), tmp_path / "hidden")

    class Visible(Frozen):
        def __init__(self, module: nn.Module) -> None:
            super().__init__(module)
            self.visible = module

    class Badly(_Taught):
        hide = Visible

    with pytest.raises(AssertionError):
        check_teacher(Badly(tiny.model(), task), tmp_path / "plain")
