"""The README is true: its example runs, its table is fresh, its commands parse."""

import doctest
import shlex
import warnings
from pathlib import Path

import pytest

from lightning_kd.cli import run
from lightning_kd.data import GLUE
from lightning_kd.methods import DyLoRA
from lightning_kd.paper import with_table

README = Path("README.md").absolute()


def commands() -> list[str]:
    """Command lines that start a run; going back to one needs a folder that is not here."""
    lines = [line.strip().partition("  #")[0] for line in README.read_text().splitlines()]
    starts = [line for line in lines if line.startswith("python recipes/dylora_glue.py")]
    return [line for line in starts if "runs/" not in line]


def test_example_runs_as_printed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a toy loader has few workers
        result = doctest.testfile(
            str(README), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
        )
    assert result.attempted > 8
    assert result.failed == 0


def test_table_of_methods_is_fresh() -> None:
    assert with_table(README.read_text()) == README.read_text()


def test_commands_are_seen() -> None:
    assert len(commands()) >= 4


@pytest.mark.parametrize("line", commands())
def test_command_parses(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)[2:]
    with pytest.raises(SystemExit) as stopped:
        run(
            DyLoRA, GLUE, args=[*words, "--print_config"], recipe=README.parent / words_recipe(line)
        )
    assert stopped.value.code == 0
    assert "max_rank" in capsys.readouterr().out


def words_recipe(line: str) -> str:
    """The recipe's path in the command."""
    return shlex.split(line)[1]
