"""Conformance 5: how a batch is split over windows and processes does not matter.

In double precision, because Adam divides a gradient by its own size: one that is zero in theory
(a key's bias) and 1e-10 in single precision would become a step of full length.
"""

from typing import Any

import pytest
import torch

from tests import tiny
from tests.conformance.matrix import differing, every_method, every_task, fit, weights
from tests.conformance.run_pair import train
from tests.kill import ROOT, run_to_end


def largest_difference(left, right) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@every_task
@every_method
def test_accumulation_gives_the_weights_of_the_whole_batch(name, kind) -> None:
    task = tiny.TASKS[kind]
    trained = {}
    for windows in (1, 2, 4):  # of 12 examples: the last step of an epoch is half as long
        module = tiny.method(name, task, batch_norm=False, learning_rate=0.01)
        batches: dict[str, Any] = {"batch_size": 8 // windows, "accumulate_grad_batches": windows}
        run = fit(module, **batches, precision="64-true", max_steps=5)
        assert run.global_step == 5
        trained[windows] = weights(module)
    assert largest_difference(trained[1], weights(tiny.method(name, task, batch_norm=False))) > 1e-3
    assert largest_difference(trained[1], trained[2]) < 1e-6
    assert largest_difference(trained[1], trained[4]) < 1e-6


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Every method and task, trained by two gloo processes; weights of both by file name."""
    folder = tmp_path_factory.mktemp("pair")
    run_to_end([ROOT / "tests/conformance/run_pair.py", folder], timeout=240)
    return {file.stem: torch.load(file) for file in folder.glob("*.pt")}


@pytest.mark.ddp
@pytest.mark.timeout(300)
@every_task
@every_method
def test_two_processes_give_the_weights_of_one_with_twice_the_batch(
    name, kind, two_processes
) -> None:
    alone = train(name, kind, batch_size=4, devices=1)
    first, second = (two_processes[f"{name} {kind} {rank}"] for rank in (0, 1))
    assert largest_difference(first, second) == 0
    assert largest_difference(first, alone) < 1e-6
    untrained = weights(tiny.method(name, tiny.TASKS[kind], batch_norm=False))
    assert largest_difference(first, untrained) > 1e-3


@pytest.mark.ddp
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", tiny.CACHED)
def test_two_processes_end_with_the_same_bits_from_a_teacher_and_from_its_cache(
    kind, two_processes
) -> None:
    first, second = (two_processes[f"taught {kind} {rank}"] for rank in (0, 1))
    assert differing(first["live"], second["live"]) == []
    for way in ("capturing", "cached"):
        for found in (first, second):
            assert differing(first["live"], found[way]) == []
    assert (
        largest_difference(first["live"], weights(tiny.method("VanillaKD", tiny.TASKS[kind]))) > 0
    )
