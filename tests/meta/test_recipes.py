"""Recipes, configs and README rows belong together, one to one."""

import ast
import re

import yaml  # type: ignore[import-untyped]

from lightning_kd import methods
from tests.kill import ROOT
from tests.recipes.command import RECIPES

STEMS = sorted(file.stem for file in (ROOT / "recipes").glob("*.py"))


def test_every_recipe_has_a_config_and_every_config_a_recipe() -> None:
    assert len(STEMS) >= 3
    assert sorted(file.stem for file in (ROOT / "configs").glob("*.yaml")) == STEMS


def test_every_recipe_is_tested_and_every_method_has_one() -> None:
    assert sorted(RECIPES) == STEMS
    assert set(RECIPES.values()) == set(methods.METHODS)


def test_readme_has_a_row_for_every_method_with_its_recipe() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \|.*\(recipes/(\w+)\.py\)", (ROOT / "README.md").read_text(), re.M
    )
    assert dict(rows) == {name: getattr(methods, name).paper.recipe for name in methods.METHODS}
    assert len(rows) == len(methods.METHODS)


def test_a_recipe_is_three_imports_and_a_call() -> None:
    for stem in STEMS:
        tree = ast.parse((ROOT / "recipes" / f"{stem}.py").read_text())
        kinds = [type(node) for node in tree.body]
        assert kinds == [ast.Expr, *[ast.ImportFrom] * 3, ast.If], stem
        assert f"configs/{stem}.yaml" in str(ast.get_docstring(tree))


def test_a_config_is_data_with_its_source_named() -> None:
    for stem in STEMS:
        text = (ROOT / "configs" / f"{stem}.yaml").read_text()
        assert text.startswith("#"), stem
        assert {"seed_everything", "trainer", "model", "data"} <= set(yaml.safe_load(text))
        assert "class_path" not in text or "ours" in text
