"""Conformance 9: card, documentation, recipe, config, README row and unit test of every method."""

import inspect
import re
import sys

import pytest
import yaml  # type: ignore[import-untyped]

from lightning_kd import methods
from lightning_kd.methods import TaskModule
from lightning_kd.paper import END, START, with_table
from tests.conformance.matrix import every_method
from tests.conformance.test_arguments import arguments_of
from tests.kill import ROOT


def card(name) -> str:
    return str(sys.modules[getattr(methods, name).__module__].__doc__)


@every_method
def test_card_says_what_it_is_and_names_the_paper(name) -> None:
    paper = getattr(methods, name).paper
    text = card(name)
    assert len(text.split()) >= 15
    assert paper.arxiv in text, "the module docstring names the paper's arXiv number"


@every_method
def test_class_documents_every_argument_of_its_own(name) -> None:
    own, *parents = (c for c in getattr(methods, name).__mro__ if "__init__" in vars(c))
    # a parent documents what is redefined only for another default
    texts = [str(owner.__doc__) for owner in (own, *parents) if issubclass(owner, TaskModule)]
    documented = {a for text in texts for a in re.findall(r"^ {4,8}(\w+): ", text, re.MULTILINE)}
    arguments = list(inspect.signature(own.__init__).parameters)[1:]
    assert [argument for argument in arguments if argument not in documented] == []


@every_method
def test_recipe_and_config_exist_and_are_of_this_method(name) -> None:
    stem = getattr(methods, name).paper.recipe
    recipe = (ROOT / "recipes" / f"{stem}.py").read_text()
    assert re.search(rf"\brun\({name}, \w+\)", recipe)
    config = (ROOT / "configs" / f"{stem}.yaml").read_text()
    assert config.startswith("#"), "a config begins with where its values are from"
    model = yaml.safe_load(config)["model"]
    assert set(model) <= set(arguments_of(name))


@every_method
def test_unit_test_exists(name) -> None:
    module = getattr(methods, name).__module__.rpartition(".")[2]
    tests = ROOT / "tests" / "methods"
    found = [*tests.glob(f"test_{module}.py"), *tests.glob(f"test_{module}_*.py")]
    assert any("def test_" in file.read_text() for file in found), f"tests/methods/test_{module}.py"


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


@every_method
def test_readme_has_a_row(name, readme) -> None:
    rows = readme.partition(START)[2].partition(END)[0].splitlines()
    mine = [row for row in rows if row.startswith(f"| `{name}` |")]
    assert len(mine) == 1
    assert f"recipes/{getattr(methods, name).paper.recipe}.py" in mine[0]


def test_readme_table_is_the_generated_one(readme) -> None:
    assert with_table(readme) == readme, "run `make readme`"
    rows = readme.partition(START)[2].partition(END)[0].strip().splitlines()
    assert len(rows) == 2 + len(methods.METHODS)
