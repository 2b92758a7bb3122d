"""Spans and choices as commands: taught with a cache, resumed, and assistants in a chain."""

import json
from typing import Any

import pytest
import torch

from lightning_kd.methods import VanillaKD
from tests import tiny
from tests.recipes.command import Site, summary

CHAIN = {"model.teacher_cache": "run", "trainer.max_epochs": 1}
SPANS = {"data.max_question_length": 4, "data.doc_stride": 4}


def hellaswag_site(folder) -> Site:
    return Site(folder, tiny.model_folder(folder / "model"), tiny.hellaswag_folder(folder / "data"))


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """The site, and a run that fine-tuned its teacher and taught a cut of it."""
    site = hellaswag_site(tmp_path_factory.mktemp("hellaswag"))
    settings = {**CHAIN, "teacher.epochs": 1, "model.student_layers": 1}
    return site, site.fit("vanilla_kd_hellaswag", **settings)


def test_a_choice_is_taught_reported_and_exported(chosen) -> None:
    _, run_dir = chosen
    assert [r["metric"] for r in summary(run_dir)["results"]] == ["accuracy"]
    config = json.loads((run_dir / "export/model/config.json").read_text())
    assert config["architectures"] == ["BertForMultipleChoice"]
    header = json.loads((run_dir / "teacher_cache/header.json").read_text())
    assert (header["rows"], header["shape"]) == (16, [4])


def test_predictions_are_of_the_test_file(chosen) -> None:
    site, run_dir = chosen
    command = ["predict", "--ckpt_path", run_dir / "checkpoints/best.ckpt"]
    cli = site.run("vanilla_kd_hellaswag", *command)
    written = (site.folder / cli.run_dir / "predictions/predictions.txt").read_text().split()
    assert len(written) == 4
    assert set(written) <= {"0", "1", "2", "3"}


def test_the_student_of_one_run_teaches_the_next(chosen) -> None:
    """Teacher assistants: the export of a run is the teacher of another."""
    site, run_dir = chosen
    assistant = run_dir / "export/model"
    settings = {**CHAIN, "teacher.epochs": 0, "model.teacher": assistant}
    settings["model.student_layers"] = 1
    second = site.fit("vanilla_kd_hellaswag", **settings)
    assert not (second / "teacher").exists()
    asked = [json.loads((run / "teacher_cache/header.json").read_text())["fingerprint"]
             for run in (run_dir, second)]  # fmt: skip
    assert asked[0]["teacher"] != asked[1]["teacher"]
    assert asked[0]["text"] == asked[1]["text"]
    checkpoint = site.fit("vanilla_kd_hellaswag", **{
        **settings, "model.teacher": run_dir / "checkpoints/best.ckpt"})  # fmt: skip
    one, other = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in (second, checkpoint)
    )
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.slow
def test_cut_off_on_spans_with_a_cache_it_ends_with_the_same_bits(tmp_path, monkeypatch) -> None:
    ended: dict[str, Any] = {}
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        site = Site(folder, tiny.model_folder(folder / "model"), tiny.squad_folder(folder / "data"))
        settings = {**CHAIN, **SPANS, "teacher.epochs": 1, "save_every_n_steps": 1}
        if name == "stopped":
            step = VanillaKD.training_step

            def training_step(self, batch, batch_idx, step=step):
                if self.trainer.global_step == 5:
                    raise RuntimeError("stopped")
                return step(self, batch, batch_idx)

            monkeypatch.setattr(VanillaKD, "training_step", training_step)
            with pytest.raises(SystemExit):
                site.fit("vanilla_kd_squad", **settings)
            monkeypatch.undo()
            site.run("vanilla_kd_squad", "--resume", site.runs()[0])
        else:
            site.fit("vanilla_kd_squad", **settings)
        (run_dir,) = site.runs()
        checkpoint = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
        ended[name] = checkpoint["state_dict"], summary(run_dir)["results"]
    ours, theirs = (ended[name][0] for name in ("whole", "stopped"))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert ended["whole"][1] == ended["stopped"][1]
