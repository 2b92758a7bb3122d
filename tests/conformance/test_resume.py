"""Conformance 3 and 6: a resumed run is the same run, and a loaded module is the same module."""

import inspect
import random
from typing import Any

import pytest
import torch

from lightning_kd import methods
from lightning_kd.nested import Nested
from lightning_kd.tasks import CausalLM, Classification, Task
from tests import tiny
from tests.conformance.matrix import (
    Watch,
    differing,
    every_method,
    every_task,
    fit,
    tensors_in,
    weights,
)
from tests.conformance.run_all import LAST, train
from tests.kill import ROOT, run_until_killed


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """A model folder, because checkpoints keep names and not objects."""
    return tiny.model_folder(tmp_path_factory.mktemp("model"))


@every_task
@every_method
def test_resumed_in_the_middle_of_an_epoch_it_ends_with_the_same_bits(name, kind, tmp_path) -> None:
    task = tiny.TASKS[kind]
    whole, resumed = tiny.method(name, task), tiny.method(name, task)
    straight = fit(whole, folder=tmp_path)
    torch.manual_seed(99)  # a resumed process has drawn other numbers
    seen: list[int] = []
    again = fit(
        resumed,
        folder=tmp_path,
        ckpt_path=tmp_path / "step=2.ckpt",
        callbacks=[Watch(lambda module: seen.append(module.trainer.global_step))],
    )
    assert seen == [2, 3]
    assert differing(weights(whole), weights(resumed)) == []
    for ours, theirs in zip(again.optimizers, straight.optimizers, strict=True):
        left = list(tensors_in(ours.state_dict()))
        right = list(tensors_in(theirs.state_dict()))
        assert len(left) == len(right) > 0
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    assert {k: float(v) for k, v in again.callback_metrics.items()} == {
        k: float(v) for k, v in straight.callback_metrics.items()
    }


@every_method
def test_resumes_after_an_accumulated_step(name, tmp_path) -> None:
    settings: dict[str, Any] = {
        "accumulate_grad_batches": 2,
        "batch_size": 2,
    }  # three steps an epoch
    whole, resumed = tiny.method(name), tiny.method(name)
    fit(whole, folder=tmp_path, **settings)
    fit(resumed, folder=tmp_path, ckpt_path=tmp_path / "step=2.ckpt", **settings)
    assert differing(weights(whole), weights(resumed)) == []


@every_method
def test_a_loaded_checkpoint_predicts_equally(name, names, tmp_path) -> None:
    settings = {"student": str(names), "task": "sst2", "learning_rate": 0.01}
    if name in tiny.ONLY_WRITE:
        settings |= {"student": tiny.named_model("llama"), "task": "alpaca"}
    if "teacher" in inspect.signature(getattr(methods, name)).parameters:
        settings["teacher"] = tiny.named_model()
    module = tiny.METHODS[name](**settings)
    fit(module, folder=tmp_path)
    path = tmp_path / "step=4.ckpt"
    loaded = getattr(methods, name).load_from_checkpoint(path, weights_only=True)
    assert differing(weights(module), weights(loaded)) == []
    batch = tiny.batch(6, module.task)
    answers = []
    for one in (module.eval(), loaded.eval()):
        with torch.no_grad():
            answers.append({size: p.logits for size, p, _ in one.predictions(batch)})
    assert answers[0].keys() == answers[1].keys()
    for size, logits in answers[0].items():
        assert torch.equal(logits, answers[1][size])
    if isinstance(module, Nested):
        assert len({tuple(logits.flatten().tolist()) for logits in answers[0].values()}) > 1


@every_method
def test_a_checkpoint_of_another_task_or_method_is_refused(name, tmp_path) -> None:
    fit(tiny.method(name), folder=tmp_path, max_steps=1)
    path = tmp_path / "step=1.ckpt"
    written = tiny.task_for(name).name
    another: Task = Classification("cola", ("unacceptable", "acceptable"))
    if name in tiny.ONLY_WRITE:
        another = CausalLM("dolly")
    with pytest.raises(
        ValueError, match=f"is of {name} on {written}, this is {name} on {another.name}"
    ):
        fit(tiny.method(name, another), ckpt_path=path)
    other = next(n for n in methods.METHODS if n != name)
    asked = tiny.task_for(other).name
    with pytest.raises(ValueError, match=f"is of {name} on {written}, this is {other} on {asked}"):
        fit(tiny.method(other), ckpt_path=path)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """All methods at once, SIGKILLed when the slowest has come a random number of steps."""
    folder = tmp_path_factory.mktemp("killed")
    steps = random.SystemRandom().randint(2, LAST - 4)
    done = dict.fromkeys(methods.METHODS, 0)

    def all_far_enough(line: str) -> bool:
        name, _, step = line.partition(" step ")
        if name in done and step.isdecimal():
            done[name] = int(step)
        return min(done.values()) >= steps

    run_until_killed([ROOT / "tests/conformance/run_all.py", folder], all_far_enough, timeout=150)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(240)
@every_method
def test_killed_at_a_random_step_and_resumed_it_ends_with_the_same_bits(
    name, killed, tmp_path
) -> None:
    folder = killed / name
    assert not (folder / f"step={LAST}.ckpt").exists(), "it had ended before it was killed"
    steps = sorted(int(p.stem.partition("=")[2]) for p in folder.glob("step=*.ckpt"))
    resumed = train(name, folder, folder / f"step={steps[-1]}.ckpt")
    straight = train(name, tmp_path)
    assert differing(weights(straight), weights(resumed)) == [], f"killed at step {steps[-1]}"
