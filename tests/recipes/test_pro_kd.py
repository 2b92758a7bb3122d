"""Pro-KD as a command: the teacher leaves its trajectory, and a kill anywhere changes nothing."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_kd.phases import read_lineage
from lightning_kd.trajectory import TeacherTrajectory
from tests import tiny
from tests.kill import ROOT, run_until_killed
from tests.recipes.command import Site, summary

STAGES = {
    "model.num_checkpoints": 3,
    "model.max_temperature": 3,
    "model.teacher_epochs": 3,
    "model.label_epochs": 1,
    "model.teacher_cache": "run",
    "teacher.learning_rate": 0.02,
    "trainer.max_epochs": "null",
    "save_every_n_steps": 1,
}
"""Each epoch has 8 steps."""


def fit(site: Site, **more: Any) -> Path:
    return site.fit("pro_kd_glue", **{**STAGES, "model.teacher": site.model, **more})


@pytest.fixture(scope="module")
def followed(site) -> Path:
    """A run that trained its teacher for three epochs and followed it."""
    return fit(site, **{"teacher.epochs": 3})


def column(run_dir: Path, name: str) -> list[float]:
    with (run_dir / "metrics.csv").open() as file:
        return [float(line[name]) for line in csv.DictReader(file) if line.get(name)]


def test_the_teacher_leaves_a_checkpoint_an_epoch_and_the_student_follows(followed) -> None:
    path = TeacherTrajectory.read(followed / "teacher/trajectory")
    path.verify(["negative", "positive"])
    assert [c.step for c in path.checkpoints] == [8, 16, 24]
    assert all(c.metric is not None and c.train_loss is not None for c in path.checkpoints)
    assert [record.phase for record in read_lineage(followed)] == ["teacher", "labels"]
    assert column(followed, "checkpoint") == [1] * 8 + [2] * 8 + [3] * 8
    assert column(followed, "temperature") == [3] * 8 + [2] * 8 + [1] * 8
    assert column(followed, "phi") == pytest.approx([1 / 3] * 8 + [2 / 3] * 8 + [1] * 8)
    assert len(column(followed, "train/followed")) == 24
    assert summary(followed)["notes"]["followed_steps"] == [8, 16, 24]
    caches = sorted(folder.name for folder in (followed / "teacher_cache").iterdir())
    assert caches == [f"checkpoint_000{j}" for j in (1, 2, 3)]


def test_no_tensor_of_the_teacher_is_in_the_student_s_checkpoint(followed) -> None:
    names = torch.load(followed / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert names
    assert all(name.startswith("student.") for name in names)


@pytest.mark.slow
def test_the_folder_alone_teaches_another_student_to_the_same_weights(followed, site) -> None:
    again = fit(
        site,
        **{
            "model.teacher": "null",
            "model.trajectory": followed / "teacher/trajectory",
            "teacher.epochs": 3,  # is left out: the trajectory is a trained teacher's
        },
    )
    assert not (again / "teacher").exists()
    assert weights(again) == weights(followed)
    assert summary(again)["results"] == summary(followed)["results"]


@pytest.mark.slow
def test_checkpoints_by_steps_and_a_threshold(site) -> None:
    steps = {"model.record_every_n_steps": 3, "teacher.epochs": 1, "model.num_checkpoints": 2}
    run_dir = fit(site, **{**steps, "data.limit_examples": 24})
    path = TeacherTrajectory.read(run_dir / "teacher/trajectory")
    assert [c.step for c in path.checkpoints] == [3, 6]
    assert summary(run_dir)["notes"]["followed_steps"] == [3, 6]


@pytest.mark.slow
def test_spans_follow_checkpoints_of_steps(tmp_path) -> None:
    model = tiny.model_folder(tmp_path / "model")
    site = Site(tmp_path, model, tiny.squad_folder(tmp_path / "data"))
    spans = {"data.max_question_length": 4, "data.doc_stride": 4, "model.student_layers": [0]}
    more: dict[str, Any] = {"model.record_every_n_steps": 4, "teacher.epochs": 1, **spans}
    run_dir = site.fit("pro_kd_squad", **{**STAGES, "model.teacher": model, **more})
    path = TeacherTrajectory.read(run_dir / "teacher/trajectory")
    assert path.labels is None
    assert [c.step for c in path.checkpoints][:2] == [4, 8]
    assert len(summary(run_dir)["notes"]["followed_steps"]) == 3
    header = json.loads((run_dir / "teacher_cache/checkpoint_0001/header.json").read_text())
    assert header["shape"] == [2, 16]


def weights(run_dir: Path) -> dict[str, list[float]]:
    state = torch.load(run_dir / "checkpoints/labels/last.ckpt", weights_only=True)["state_dict"]
    return {name: value.tolist() for name, value in state.items()}


MOMENTS = {
    "teacher": "teacher/trajectory/checkpoint_0002.safetensors",
    "follows": "teacher_cache/checkpoint_0002/header.json",
    "between": "lineage.json",
}
"""When a run is killed: as soon as it has written this file."""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_it_ends_with_the_same_bits(
    moment, followed, site, tmp_path, monkeypatch
) -> None:
    own = Site(tmp_path, site.model, site.data)
    settings = own.settings(**STAGES, **{"teacher.epochs": 3, "model.teacher": site.model})
    monkeypatch.chdir(tmp_path)

    def written(_: str) -> bool:
        return any((run_dir / MOMENTS[moment]).exists() for run_dir in own.runs())

    run_until_killed([ROOT / "recipes/pro_kd_glue.py", *settings], written, timeout=200)
    (run_dir,) = own.runs()
    assert not (run_dir / "report/summary.json").exists()
    own.run("pro_kd_glue", "--resume", run_dir)
    assert weights(run_dir) == weights(followed)
    assert summary(run_dir)["results"] == summary(followed)["results"]
    assert points(run_dir) == points(followed)


def points(run_dir: Path) -> Any:
    """The index without what is the run's own."""
    found = json.loads((run_dir / "teacher/trajectory/index.json").read_text())["checkpoints"]
    return [{name: value for name, value in point.items() if name != "sha256"} for point in found]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"teacher.epochs": 0}, "ProKD needs --model.trajectory, or --teacher.epochs to record"),
        ({"teacher.epochs": 2}, "num_checkpoints=3, but the teacher's 2 epoch(s) leave one each"),
        ({"model.teacher_epochs": 2}, "num_checkpoints=3 takes as many teacher_epochs, got 2"),
        ({"model.trajectory": "nowhere"}, "nowhere is no trajectory, it has no index.json"),
        ({"model.teacher": "null", "teacher.epochs": 3}, "trains model.teacher, which this run"),
    ],
)
def test_what_cannot_be_followed_is_said_before_anything_is_trained(
    more, message, site, capsys
) -> None:
    before = site.runs()
    with pytest.raises(SystemExit):
        fit(site, **more)
    assert message in capsys.readouterr().err
    new = [run for run in site.runs() if run not in before]
    assert not [run for run in new if (run / "teacher" / "checkpoints").exists()]


def test_a_damaged_trajectory_stops_the_student_at_the_start(site, tmp_path, capsys) -> None:
    from tests.trajectories import trajectory

    folder = tmp_path / "path"
    folder.mkdir()
    for file in Path(trajectory(tiny.model())).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damaged = folder / "checkpoint_0002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(SystemExit):
        fit(site, **{"model.trajectory": folder, "model.num_checkpoints": 2})
    assert "checkpoint_0002.safetensors is not what was recorded" in capsys.readouterr().err
