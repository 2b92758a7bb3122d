"""CONTRIBUTING.md's "add a method in six steps", executed on a copy of the repository.

A fenced block there begins with ``# file: PATH`` (written as it stands) or ``# append: PATH``.
"""

import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from tests.kill import ROOT

BLOCK = re.compile(
    r"^([ ]*)```(?:python|yaml)\n[ ]*# (file|append): (\S+)\n(.*?)^[ ]*```$", re.M | re.S
)
COPIED = (
    "lightning_kd", "tests", "recipes", "configs", "pyproject.toml", "README.md", "CHANGELOG.md",
)  # fmt: skip


def blocks() -> list[tuple[str, str, str]]:
    """``(file or append, path, text)`` in the order of the page."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    return [(how, path, textwrap.dedent(text)) for _, how, path, text in BLOCK.findall(page)]


def method() -> str:
    """Name of the method that the page adds."""
    names = [re.search(r"^METHODS\[\"(\w+)\"\]", text, re.M) for _, _, text in blocks()]
    (name,) = {found.group(1) for found in names if found}
    return name


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with the page's blocks in it."""
    folder = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    for how, path, text in blocks():
        target = folder / path
        assert target.is_file() == (how == "append"), path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a") as file:
            file.write(text if how == "file" else "\n" + text)
    return folder


def python(folder, *args, timeout=200) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run(
        [sys.executable, *args],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-3000:]
    return run.stdout


def test_the_page_has_six_steps_and_a_block_for_each_kind_of_file() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    steps = page.partition("## Add a method in six steps")[2].partition("\n## ")[0]
    assert re.findall(r"^(\d)\. ", steps, re.M) == list("123456")
    folders = {path.partition("/")[0] for _, path, _ in blocks()}
    assert folders == {"lightning_kd", "tests", "recipes", "configs"}
    assert len(blocks()) == steps.count("# file: ") + steps.count("# append: ") >= 7


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_added_method_passes_the_conformance_matrix_and_its_own_tests(copy) -> None:
    name = method()
    python(copy, "-m", "lightning_kd.paper", "README.md")  # step 6: make readme
    assert f"| `{name}` |" in (copy / "README.md").read_text()
    own = [path for _, path, _ in blocks() if path.startswith(("tests/methods/", "lightning_kd/f"))]
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance", *own)
    out = python(copy, *words, "-k", f"{name} or {' or '.join(_stem(path) for path in own)}")
    passed = re.search(r"(\d+) passed", out)
    assert passed, out
    assert int(passed.group(1)) >= 25
    assert "skipped" not in out


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_its_recipe_parses(copy) -> None:
    (recipe,) = [path for _, path, _ in blocks() if path.startswith("recipes/")]
    assert "learning_rate" in python(copy, recipe, "--print_config")


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".py")
