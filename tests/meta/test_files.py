"""Rules over all files: length, docstrings, annotations, versions that agree."""

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import lightning_kd

ROOT = Path(__file__).parents[2]
FOLDERS = ("lightning_kd", "recipes", "tests", "benchmarks")


def sources(*folders) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def relative(files) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in files]


def test_no_file_has_more_than_300_lines() -> None:
    files = sources(*FOLDERS)
    assert len(files) >= 25
    assert relative(f for f in files if len(f.read_text().splitlines()) > 300) == []


def test_every_file_has_a_docstring() -> None:
    trees = {file: ast.parse(file.read_text()) for file in sources(*FOLDERS)}
    assert relative(f for f, tree in trees.items() if not ast.get_docstring(tree)) == []


def test_no_future_annotations() -> None:  # jaxtyping checks real annotations, not strings
    line = "from __future__ import " + "annotations"
    assert relative(f for f in sources(*FOLDERS) if line in f.read_text()) == []


def test_every_public_name_exists_and_has_a_docstring() -> None:
    missing, seen = [], 0
    for file in sources("lightning_kd"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            seen += 1
            thing = getattr(module, public)
            if (inspect.isclass(thing) or inspect.isroutine(thing)) and not thing.__doc__:
                missing.append(f"{name}.{public}")
    assert seen >= 12
    assert missing == []


def test_constraints_pin_every_dependency_exactly_and_name_no_host() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert len(lines) >= 100
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pinned = {_canonical(line.split("==")[0]) for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for extra in extras for name in extra)]
    wanted = [name for name in wanted if not name.startswith(project["name"])]  # extras of its own
    assert [w for w in wanted if _canonical(re.split(r"[\[<>=!~]", w)[0]) not in pinned] == []


def test_version_and_changelog_agree() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = [heading.split()[0].strip("[]") for heading in headings[1:]]
    assert not released or released[0] == lightning_kd.__version__


def _canonical(name) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
