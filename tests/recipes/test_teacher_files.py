"""What a run leaves on disk has no weight of its teacher, but where that was trained."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_kd.phases import read_lineage
from tests import tiny
from tests.kill import ROOT, run_to_end
from tests.recipes.command import make_site, summary
from tests.traces import traces

SETTINGS = {
    "model.teacher": tiny.named_model(),  # other weights than the student's
    "model.teacher_cache": "run",
    "model.max_temperature": 1,
    "model.teacher_epochs": 1,
    "model.label_epochs": 1,
    "trainer.max_epochs": 2,
    "teacher.epochs": 1,
    "teacher.learning_rate": 0.02,
}
ITS_OWN = ("teacher", "teacher_cache")


def check(run_dir) -> None:
    """Nothing of the teacher, before or after its training, outside of `ITS_OWN`."""
    given = load_file(f"{tiny.named_model()}/model.safetensors")
    trained = load_file(run_dir / "teacher/export/model/model.safetensors")
    written = {f.suffix for f in run_dir.rglob("*") if f.is_file()}
    assert {".ckpt", ".safetensors", ".json", ".csv", ".yaml", ".md"} <= written
    assert [record.phase for record in read_lineage(run_dir)] == ["teacher", "labels"]
    assert traces(run_dir, given, ITS_OWN) == []
    assert traces(run_dir, trained, ITS_OWN) == []
    assert any(line.startswith("teacher/export/model") for line in traces(run_dir, trained))
    student = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    in_files = {line.partition(":")[0] for line in traces(run_dir, student, ITS_OWN)}
    assert {"checkpoints/best.ckpt", "export/model/model.safetensors"} <= in_files


def test_one_process_writes_nothing_of_the_teacher(site) -> None:
    check(site.fit("annealing_kd_glue", **SETTINGS))


@pytest.mark.ddp
@pytest.mark.timeout(300)
def test_two_processes_write_nothing_of_the_teacher_and_share_its_answers(
    tmp_path, monkeypatch
) -> None:
    site = make_site(tmp_path)
    monkeypatch.chdir(site.folder)
    overlay = f"--config={ROOT}/configs/overlays/ddp_cpu.yaml"
    more = {**SETTINGS, "trainer.devices": 2}
    run_to_end(
        [ROOT / "recipes/annealing_kd_glue.py", overlay, *site.settings(**more)], timeout=280
    )
    (run_dir,) = site.runs()
    check(run_dir)
    folder = tmp_path / "alone"
    folder.mkdir()
    alone = type(site)(folder, site.model, site.data)
    one = alone.fit("annealing_kd_glue", **SETTINGS, **{"data.batch_size": 8})
    assert summary(run_dir)["results"] == summary(one)["results"]
    kept = [np.fromfile(run / "teacher_cache/logits.bin", np.float32) for run in (run_dir, one)]
    assert np.abs(kept[0] - kept[1]).max() < 1e-4
    assert np.fromfile(run_dir / "teacher_cache/sums.bin", np.uint32).all()


def test_a_copy_is_found_in_any_format_and_precision(tmp_path) -> None:
    weights = dict(tiny.model().state_dict())
    name = "classifier.weight"
    other = {"other": torch.randn(8, 8)}
    torch.save(other, tmp_path / "other.ckpt")
    assert traces(tmp_path, weights) == []
    torch.save({"a": [{"b": weights[name].clone()}]}, tmp_path / "one.ckpt")
    save_file({"x": weights[name].half()}, tmp_path / "two.safetensors")
    save_file({"x": weights[name].bfloat16()}, tmp_path / "three.safetensors")
    np.savez(tmp_path / "four.npz", weights[name].double().numpy())
    found = [f"{file}: {name}" for file in ("four.npz", "one.ckpt", "three.safetensors")]
    assert traces(tmp_path, weights) == [*found, f"two.safetensors: {name}"]
    (tmp_path / "in").mkdir()
    for file in list(tmp_path.glob("*.*")):
        file.rename(tmp_path / "in" / file.name)
    torch.save(other, tmp_path / "other.ckpt")
    assert traces(tmp_path, weights, ["in"]) == []
