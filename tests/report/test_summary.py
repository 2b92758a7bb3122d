"""The schema of summary.json is a promise to other programs."""

import dataclasses
import json
import math
import platform
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from lightning_kd import __version__
from lightning_kd.report import Result, Summary, compare, environment, write_report
from lightning_kd.report.summary import _commit

SUMMARY = Summary(
    method="DyLoRA",
    benchmark="glue",
    task="sst2",
    model="org/encoder",
    seed=3,
    seconds=12.5,
    environment={"torch": "2.13.0", "cpus": 2},
    data_sha256="ab" * 32,
    results=(
        Result(1, "validation", "accuracy", 0.75, 100),
        Result(None, "test", "f1", 0.5, 200),
    ),
)


def test_the_json_has_exactly_the_keys_of_the_schema():
    full = dataclasses.replace(SUMMARY.results[0], seconds=1.0, standard_error=0.1)
    summary = dataclasses.replace(SUMMARY, results=(full, SUMMARY.results[1]), size_name="layer")
    assert summary.to_json() == {
        "method": "DyLoRA",
        "benchmark": "glue",
        "task": "sst2",
        "model": "org/encoder",
        "seed": 3,
        "seconds": 12.5,
        "environment": {"torch": "2.13.0", "cpus": 2},
        "data_sha256": "ab" * 32,
        "results": [
            {
                "size": 1,
                "split": "validation",
                "metric": "accuracy",
                "value": 0.75,
                "trainable_parameters": 100,
            },
            {
                "size": None,
                "split": "test",
                "metric": "f1",
                "value": 0.5,
                "trainable_parameters": 200,
            },
        ],
    }


def test_a_summary_comes_back_from_its_file_however_the_run_is_named(tmp_path):
    write_report(tmp_path, SUMMARY)
    for path in (tmp_path, tmp_path / "report", tmp_path / "report" / "summary.json"):
        assert Summary.read(path) == SUMMARY


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null_in_valid_json(tmp_path, value):
    diverged = dataclasses.replace(SUMMARY.results[0], value=value)
    write_report(tmp_path, dataclasses.replace(SUMMARY, results=(diverged,), seconds=value))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "report" / "summary.json").read_text()
    record = json.loads(text, parse_constant=refuse)
    assert record["results"][0]["value"] is None
    assert record["seconds"] is None
    assert math.isnan(Summary.read(tmp_path).results[0].value)
    assert "not finite" in (tmp_path / "report" / "report.md").read_text()


def test_a_path_without_a_summary_is_named_with_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(tmp_path))}; give a run folder"):
        Summary.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ('{"accuracy": 1}', "no 'method', .*unknown 'accuracy'"),
        (json.dumps(SUMMARY.to_json() | {"seed": "three"}), "'seed' is 'three'"),
        (json.dumps(SUMMARY.to_json() | {"results": [{}]}), "no 'size'"),
    ],
)
def test_a_file_that_is_something_else_is_refused_with_the_reason(tmp_path, text, reason):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"is not a summary of a run: .*{reason}") as caught:
        Summary.read(file)
    assert str(caught.value).startswith(str(file))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "summary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a summary of a run: not JSON"):
        Summary.read(tmp_path)


def test_the_environment_has_versions_and_hardware_but_nobody_in_it():
    found = environment()
    assert found["lightning_kd"] == __version__
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert found["threads"] == torch.get_num_threads()
    assert {"lightning", "transformers", "peft", "datasets", "torchmetrics"} < found.keys()
    assert {"machine", "cpus", "accelerator"} < found.keys()
    text = json.dumps(found)
    assert socket.gethostname() not in found.values()
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text


def test_the_environment_says_which_packages_are_missing(monkeypatch):
    monkeypatch.setattr("lightning_kd.report.summary.PACKAGES", ("no-such-package",))
    assert environment()["no-such-package"] == "not installed"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_clone_itself_and_says_if_files_differ(tmp_path):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "installed").mkdir()
    (tmp_path / "file").write_text("one")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    git("tag", "v1")
    commit = _commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{7,}", commit or "")
    (tmp_path / "file").write_text("two")
    assert _commit(tmp_path) == f"{commit}-dirty"
    assert _commit(tmp_path / "installed") is None  # another project's environment


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("roberta-base", "roberta-base"),
        ("org/encoder", "org/encoder"),
        ("/home/someone/encoder", "encoder"),
        ("./encoder", "encoder"),
        ("assets/encoders/mini", "mini"),
    ],
)
def test_a_title_has_the_hub_name_or_the_last_part_of_a_folder(model, name):
    assert dataclasses.replace(SUMMARY, model=model).model_name == name


def test_notes_are_kept_and_a_file_without_them_is_read(tmp_path) -> None:
    notes = {"train_transforms": ["FlipLabels(rate=0.2)"], "observed_flip_rate": 0.19}
    plain = Summary("LoRA", "glue", "rte", "org/model", 0, 1.0, {}, "abcdef012345", ())
    noted = dataclasses.replace(plain, notes=notes)
    assert "notes" not in plain.to_json()
    assert Summary.from_json(plain.to_json()).notes == {}
    assert Summary.from_json(noted.to_json()) == noted
    assert noted.trained_on == "abcdef01, FlipLabels(rate=0.2)"
    with pytest.raises(ValueError, match="'notes' is 3"):
        Summary.from_json({**plain.to_json(), "notes": 3})


def test_runs_on_noisy_labels_are_not_averaged_with_clean_ones(tmp_path) -> None:
    paths = []
    result = Result(None, "validation", "accuracy", 0.5, 10)
    plain = Summary("LoRA", "glue", "rte", "org/model", 0, 1.0, {}, "abcdef012345", (result,))
    noisy = dataclasses.replace(plain, notes={"train_transforms": ["FlipLabels(rate=0.2)"]})
    for number, one in enumerate((plain, noisy, plain)):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(one.to_json()))
        paths.append(path)
    rows = [row for row in str(compare(paths)).splitlines() if row.startswith("| LoRA")]
    assert len(rows) == 2
    assert rows[0].endswith("| 2 |")
    assert "FlipLabels(rate=0.2)" in rows[1]
