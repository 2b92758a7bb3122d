"""Conformance 7: every constructor argument of every method has an effect."""

import inspect
from functools import cache
from typing import Any

import pytest
import torch

from lightning_kd import methods
from lightning_kd.methods import TaskModule
from tests import tiny
from tests.conformance.arguments import ARGUMENTS, Change, Made, change_of


def arguments_of(name: str) -> list[str]:
    """What a user can set: a class's own arguments, and those its ``**kwargs`` hand on."""
    found: list[str] = []
    for owner in getattr(methods, name).__mro__:
        if not issubclass(owner, TaskModule) or "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]
        named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        found += [argument for argument in named if argument not in found]
        if len(named) == len(parameters):
            break
    return found


CASES = [(name, argument) for name in methods.METHODS for argument in arguments_of(name)]


def test_arguments_are_found_up_the_family() -> None:
    assert arguments_of("FineTuning")[:4] == ["student", "task", "train", "learning_rate"]
    assert "warmup_fraction" in arguments_of("DyLoRA")


def test_the_table_names_no_argument_that_is_gone() -> None:
    owners = {owner.__name__ for n in methods.METHODS for owner in getattr(methods, n).__mro__}
    entries = [*ARGUMENTS.items(), *tiny.ARGUMENTS.items()]
    for owner, changes in entries:
        assert owner in owners
        bases = getattr(methods, owner).__mro__  # arguments that it passes on are its own too
        theirs = {p for base in bases for p in inspect.signature(base.__init__).parameters}
        assert set(changes) <= theirs, owner


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_argument_has_an_effect(name, argument, tmp_path) -> None:
    change = change_of(name, argument)
    assert change is not None, f"enter {argument} of {name} in tests/tiny.py, ARGUMENTS"
    value = change.value.make(name, tmp_path) if isinstance(change.value, Made) else change.value
    default = _without(name, change.observe, tuple(sorted(change.given.items())))
    assert _observed(name, change, {argument: value}) != default


@cache
def _without(name: str, observe: Any, given: tuple[tuple[str, Any], ...]) -> Any:
    return _observed(name, Change(None, observe), dict(given))


def _observed(name: str, change: Change, more: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    task = more.pop("task", tiny.task_for(name))
    settings = {"learning_rate": 0.01, **change.given, **more}
    student = settings.pop("student", None) or tiny.model("bert", task)
    torch.manual_seed(0)
    module = tiny.METHODS[name](student, task, **settings).train()
    torch.manual_seed(1)  # of the dropout
    return change.observe(module)
