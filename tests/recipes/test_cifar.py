"""Recipes on images: a teacher trained in the run, a cache of views, exports, resuming."""

import csv
import json
from typing import Any

import pytest
import torch

from lightning_kd.data import CIFAR
from lightning_kd.methods import VanillaKD
from lightning_kd.tasks import task_named
from lightning_kd.teachers import load_teacher
from tests.recipes.command import summary

SHORT = {"model.teacher": "resnet8", "teacher.epochs": 1, "teacher.learning_rate": 0.03}


@pytest.fixture(scope="module")
def taught(site):
    """VanillaKD with two views of each image and a teacher of one epoch."""
    views = {"data.augment": "true", "data.augment_views": 2, "model.teacher_cache": "run"}
    return site.fit("vanilla_kd_cifar", **SHORT, **views)


def column(path, name) -> list[float]:
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_the_teacher_is_trained_with_the_students_optimizer_at_its_own_rate(taught) -> None:
    teacher = column(taught / "teacher/metrics.csv", "train/learning_rate")
    student = column(taught / "metrics.csv", "train/learning_rate")
    steps = len(teacher)
    assert len(student) == 2 * steps >= 12
    tenth, hundredth = -(-steps // 2), -(-3 * steps // 4)
    assert teacher[0] == teacher[tenth - 1] == pytest.approx(0.03)
    assert teacher[tenth] == pytest.approx(0.003)
    assert teacher[hundredth] == pytest.approx(0.0003)
    assert student[0] == pytest.approx(0.1)  # of model.optimizer in the config
    assert student[-1] == pytest.approx(0.001)


def test_weight_decay_is_the_given_optimizers(taught) -> None:
    last = torch.load(taught / "checkpoints/last.ckpt", weights_only=True)
    (group,) = last["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], group["momentum"]) == (1e-4, 0.9)


def test_the_export_answers_as_the_checkpoint_and_knows_its_normalization(taught, site) -> None:
    folder = taught / "export/model"
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in folder.iterdir()} == names
    exported = load_teacher(str(folder), task_named("digits"))
    module = VanillaKD.load_from_checkpoint(taught / "checkpoints/best.ckpt", weights_only=True)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(exported(images), module.student.eval()(images))
    data = CIFAR("digits", str(site.folder / "digits"))
    data.setup()
    written = json.loads((folder / "preprocessor_config.json").read_text())
    assert written["image_mean"] == data._mean.tolist()


def test_the_report_is_of_validation_and_test(taught) -> None:
    found = summary(taught)
    assert (found["benchmark"], found["task"], found["model"]) == ("cifar", "digits", "resnet8")
    assert [result["split"] for result in found["results"]] == ["validation", "test"]
    assert (taught / "report/curves.png").is_file()


def test_every_view_was_asked_once(taught) -> None:
    header = json.loads((taught / "teacher_cache/header.json").read_text())
    folder = str(taught.parents[2] / "digits")
    data = CIFAR("digits", folder, holdout_fraction=0.25, seed=20)
    assert header["rows"] % 2 == 0
    assert header["shape"] == [10]
    assert "views=2" in header["fingerprint"]["augmentation"]
    sums = (taught / "teacher_cache/sums.bin").read_bytes()
    kept = sum(any(sums[4 * k : 4 * k + 4]) for k in range(header["rows"]))
    data.setup()
    assert kept == 2 * len(data._splits("train")["train"])


def test_a_trained_teacher_is_taken_by_folder_or_checkpoint(taught, site) -> None:
    options: dict[str, Any] = {
        "teacher.epochs": 0,
        "model.schedule": "stepwise",
        "data.augment": "false",
    }
    options |= {"model.optimizer.init_args.lr": 0.01, "trainer.max_epochs": 1}
    for name in ("export/model", "checkpoints/best.ckpt"):
        options["model.teacher"] = str(taught / "teacher" / name)
        run_dir = site.fit("continuation_kd_cifar", **options)
        assert not (run_dir / "teacher").exists()
        assert (run_dir / "export/model/model.safetensors").is_file()


def test_a_random_augmentation_refuses_a_cache(site, capsys) -> None:
    with pytest.raises(SystemExit):
        site.fit("vanilla_kd_cifar", **SHORT, **{"model.teacher_cache": "run"})
    assert "--data.augment false" in capsys.readouterr().err


def test_predictions_name_the_classes(taught, site) -> None:
    command = ["predict", "--config", taught / "config.yaml"]
    best = taught / "checkpoints/best.ckpt"
    cli = site.run("vanilla_kd_cifar", *command, "--ckpt_path", best)
    lines = (site.folder / cli.run_dir / "predictions/digits.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["index", *map(str, range(12))]


def test_stages_with_random_looks_resume_to_the_same_bits(site, monkeypatch, tmp_path) -> None:
    stages = {"model.max_temperature": 1, "model.teacher_epochs": 1, "model.label_epochs": 2}
    options = SHORT | stages | {"trainer.max_epochs": "null", "save_every_n_steps": 3}
    straight = site.fit("annealing_kd_cifar", **options)
    with monkeypatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("lightning_kd.methods.AnnealingKD.on_train_epoch_end", _second(stop))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            site.fit("annealing_kd_cifar", **options)
    cut = max(site.runs(), key=lambda path: path.stat().st_mtime_ns)
    assert cut != straight
    assert not (cut / "export/model").exists()
    site.run("annealing_kd_cifar", "--resume", cut)
    whole, resumed = (
        torch.load(path / "checkpoints/labels/last.ckpt", weights_only=True)["state_dict"]
        for path in (straight, site.folder / cut)
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def _second(act):
    """Acts in the second epoch of the labels."""

    def hook(self) -> None:
        if self.phase == "labels" and self.current_epoch == 1:
            act()

    return hook
