"""Annealing-KD and Continuation-KD as commands: phases on record, moving numbers in the metrics."""

import csv

import pytest
import yaml  # type: ignore[import-untyped]

from lightning_kd.phases import read_lineage
from tests.recipes.command import summary


def column(run_dir, name, phase=None) -> list[float]:
    with (run_dir / "metrics.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if phase in (None, line.get("phase"))]
    return [float(line[name]) for line in lines if line.get(name)]


def test_annealing_kd_goes_through_its_two_stages(site) -> None:
    stages = {"model.max_temperature": 2, "model.teacher_epochs": 2, "model.label_epochs": 1}
    more = {**stages, "trainer.max_epochs": 3, "model.teacher_cache": "run", "teacher.epochs": 1}
    run_dir = site.fit("annealing_kd_glue", **more)
    assert [record.phase for record in read_lineage(run_dir)] == ["teacher", "labels"]
    assert column(run_dir, "temperature", "teacher") == [2] * 8 + [1] * 8
    assert column(run_dir, "temperature", "labels") == []
    assert len(column(run_dir, "train/annealed")) == 16
    assert len(column(run_dir, "train/hard", "labels")) == 8
    assert summary(run_dir)["method"] == "AnnealingKD"
    assert (run_dir / "teacher/export/model/model.safetensors").is_file()


def test_continuation_kd_with_psi_from_the_command_line(site) -> None:
    psi = {
        "model.psi": "lightning_kd.paper_schedules.LinearPsi",
        "model.psi.epochs": 4,
        "model.psi.until": 1,
    }
    run_dir = site.fit(
        "continuation_kd_glue", **psi, **{"model.max_temperature": 1, "model.margin": 0.0}
    )
    assert column(run_dir, "psi") == [0.25] * 8 + [1] * 8
    assert len(column(run_dir, "train/hinge")) == len(column(run_dir, "train/active")) == 8
    written = yaml.safe_load((run_dir / "config.yaml").read_text())["model"]["psi"]
    assert written["init_args"] == {"epochs": 4, "until": 1}


@pytest.mark.parametrize(
    ("stem", "settings", "message"),
    [
        ("annealing_kd_glue", {"trainer.max_epochs": 7}, "2 (teacher) + 1 (labels) = 3 epochs"),
        ("continuation_kd_glue", {"model.max_temperature": 3}, "into 3 stairs"),
        (
            "continuation_kd_glue",
            {"model.psi": "Constant", "model.psi.value": 1.5},
            "psi must rise",
        ),
    ],
    ids=["phases", "stairs", "psi"],
)
def test_a_length_that_cannot_be_is_refused_before_the_teacher_is_trained(
    stem, settings, message, site, capsys
) -> None:
    before = site.runs()
    fixed = {"model.max_temperature": 1, "teacher.epochs": 1}
    if stem == "annealing_kd_glue":
        fixed |= {"model.teacher_epochs": 2, "model.label_epochs": 1}
    with pytest.raises(SystemExit):
        site.fit(stem, **{**fixed, **settings})
    assert message in capsys.readouterr().err
    assert not [run for run in site.runs() if run not in before and (run / "teacher").exists()]
