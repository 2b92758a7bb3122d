"""Importing costs nothing, and no module needs an optional extra to be imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = ("bitsandbytes", "deepspeed", "lycoris", "gguf")

IMPORT_ALL = """
import importlib, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Blocked())
for name in sys.argv[2:]:
    importlib.import_module(name)
print(json.dumps(sorted(name for name in sys.modules if name.startswith("lightning_kd"))))
"""


def python(code, *args) -> str:
    command = [sys.executable, "-c", code, *args]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def modules() -> list[str]:
    files = (ROOT / "lightning_kd").rglob("*.py")
    parts = (file.relative_to(ROOT).with_suffix("").parts for file in files)
    return sorted(".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts)


def test_importing_the_package_imports_nothing_but_itself() -> None:
    code = """
import json, sys
before = set(sys.modules)
import lightning_kd
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    assert json.loads(python(code)) == ["lightning_kd"]


@pytest.mark.slow
def test_every_module_imports_without_the_optional_extras() -> None:
    names = modules()
    assert len(names) >= 12
    seen = json.loads(python(IMPORT_ALL, ",".join(EXTRAS), *names).splitlines()[-1])
    assert seen == names


@pytest.mark.slow
def test_heavy_libraries_wait_until_they_are_used() -> None:
    code = IMPORT_ALL.replace(
        'startswith("lightning_kd")',
        'partition(".")[0] in {"transformers", "datasets", "peft", "matplotlib"}',
    )
    # torchmetrics, which lightning imports, looks for transformers and matplotlib by itself
    mine = python(code, "-", *modules()).splitlines()[-1]
    lightning = python(code, "-", "lightning", "torchmetrics").splitlines()[-1]
    assert set(json.loads(mine)) <= set(json.loads(lightning))
