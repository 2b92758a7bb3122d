"""A distillation recipe as a command: the teacher first, then the student, resumed anywhere."""

import csv
import json

import pytest
import torch

from lightning_kd.methods import FineTuning, VanillaKD
from tests.conformance.matrix import tensors_in
from tests.recipes.command import Site, summary

SETTINGS = {
    "teacher.epochs": 1,
    "teacher.learning_rate": 0.02,
    "model.student_layers": 1,
    "model.teacher_cache": "run",
    "save_every_n_steps": 1,
}


@pytest.fixture(scope="module")
def taught(site) -> Site:
    """The folder of a run that trained its teacher."""
    return site.fit("vanilla_kd_glue", **SETTINGS)


def weights(path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_the_teacher_is_trained_reported_and_exported_first(taught) -> None:
    teacher = taught / "teacher"
    assert summary(teacher)["method"] == "FineTuning"
    assert (teacher / "export/model/model.safetensors").exists()
    assert (teacher / "export/model/tokenizer.json").exists()
    assert summary(taught)["method"] == "VanillaKD"
    assert "[teacher](../teacher)" in (taught / "report/report.md").read_text()
    assert (taught / "report/curves.png").exists()


def test_its_answers_are_kept_in_the_run(taught) -> None:
    header = json.loads((taught / "teacher_cache/header.json").read_text())
    assert header["rows"] == 32
    assert header["shape"] == [2]
    assert set(header["fingerprint"]) >= {"teacher", "text", "tokenizer", "max_length", "precision"}


def test_the_student_is_cut_exported_and_alone_in_the_checkpoint(taught) -> None:
    exported = json.loads((taught / "export/model/config.json").read_text())
    assert exported["num_hidden_layers"] == 1
    assert (
        json.loads((taught / "teacher/export/model/config.json").read_text())["num_hidden_layers"]
        == 2
    )
    checkpoint = torch.load(taught / "checkpoints/last.ckpt", weights_only=True)
    student = checkpoint["state_dict"].values()
    counted = sum(t.numel() for t in tensors_in(checkpoint) if t.numel() > 1)
    assert counted <= 1.02 * 3 * sum(t.numel() for t in student)  # weights and AdamW's two moments


def test_evaluation_does_not_need_the_teacher(taught, site) -> None:
    (taught / "teacher").rename(taught / "gone")
    try:
        cli = site.run(
            "vanilla_kd_glue", "validate", "--ckpt_path", taught / "checkpoints/best.ckpt"
        )
    finally:
        (taught / "gone").rename(taught / "teacher")
    of_run = [r for r in summary(taught)["results"] if r["split"] == "validation"]
    assert summary(site.folder / cli.run_dir)["results"] == of_run


@pytest.mark.slow
@pytest.mark.parametrize("method", [FineTuning, VanillaKD], ids=["teacher", "student"])
def test_cut_off_in_either_training_it_ends_with_the_same_bits(
    method, taught, site, tmp_path, monkeypatch
) -> None:
    step = method.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 3:
            raise RuntimeError("stopped")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(method, "training_step", training_step)
    stopped = Site(tmp_path, site.model, site.data)
    with pytest.raises(SystemExit):
        stopped.fit("vanilla_kd_glue", **SETTINGS)
    monkeypatch.undo()
    (run_dir,) = stopped.runs()
    stopped.run("vanilla_kd_glue", "--resume", run_dir)
    ours, theirs = (weights(f / "checkpoints/last.ckpt") for f in (run_dir, taught))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert rows(run_dir) == rows(taught)
    assert summary(run_dir)["results"] == summary(taught)["results"]


def rows(run_dir) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_model_that_was_not_fine_tuned_cannot_teach(site, tmp_path, capsys) -> None:
    from transformers import BertModel

    from tests import tiny

    BertModel(tiny.config()).save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        site.fit("vanilla_kd_glue", **{"model.teacher": tmp_path})
    assert "fine-tune it first (--teacher.epochs 3)" in capsys.readouterr().err


def test_a_finished_run_resumed_exports_again(taught, site) -> None:
    site.run("vanilla_kd_glue", "--resume", taught)
    assert (taught / "export/model/tokenizer.json").exists()
