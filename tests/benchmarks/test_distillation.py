"""The evidence's bookkeeping, its arms, and what its report says of known numbers."""

import json

import pytest

from benchmarks import distillation_evidence as evidence
from benchmarks.distillation_arms import ARMS, FAMILIES, Sample, grid
from tests import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    model = tiny.model_folder(folder / "model")
    return folder, model, tiny.sst2_folder(folder / "data", train=64, dev=24)


@pytest.fixture(autouse=True)
def one_layer(monkeypatch):
    monkeypatch.setattr(evidence, "CUTS", {2: (0,)})


def command(folders, *more) -> list[str]:
    folder, model, data = folders
    words = ["--model", model, "--data_dir", data, "--examples", 24, "--epochs", 3]
    words += ["--teacher_epochs", 1, "--holdout_fraction", 0.3, "--batch_size", 8]
    words += ["--max_length", 16, "--output", folder / "sst2.jsonl"]
    return [str(word) for word in (*words, *more)]


def read(folders):
    return [json.loads(line) for line in (folders[0] / "sst2.jsonl").read_text().splitlines()]


def test_all_arms(folders):  # tmp
    evidence.main(command(folders, "--seeds", 0, "--noise", 0.4, "--rates", 1e-3, "--arms", "fine_tuning", "vanilla_kd", "annealing_kd_constant"))
    for r in read(folders): print(r["stage"], r["arm"], r["noise"], r["seed"], r["rate"], r["scores"], r["about"])
