"""SoFT's recipe reports every exit, and each leaves as a model that transformers loads."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_kd.commands import export
from tests import tiny
from tests.recipes.command import summary


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_reports_every_exit_and_any_can_be_exported(site, tmp_path) -> None:
    writer = tiny.writer_folder(site.folder / "deep", num_hidden_layers=3)
    settings = {"model.student": writer, "model.exits": "[1, 2]"}
    run_dir = site.fit("soft_alpaca", **settings)
    rows = summary(run_dir)["results"]
    for split in ("validation", "test"):
        found = {
            row["size"]: row["value"]
            for row in rows
            if (row["split"], row["metric"]) == (split, "perplexity")
        }
        assert set(found) == {1, 2, 3}
        assert all(1 < value < 40 for value in found.values())  # below the number of words
    made = {}
    for size in (1, 2, 3):
        export(run_dir / "checkpoints/best.ckpt", size, tmp_path / str(size))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(size))
        assert model.config.num_hidden_layers == size
        with torch.no_grad():
            made[size] = model(torch.tensor([[5, 6, 7]])).logits
    assert not torch.equal(made[1], made[2])
    assert not torch.equal(made[2], made[3])
    written = list((run_dir / "export").iterdir())
    assert {folder.name for folder in written} <= {"layer_1", "layer_2", "layer_3"}
    for folder in written:
        assert AutoTokenizer.from_pretrained(folder)("w1")["input_ids"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_triviaqa_reports_the_matches_of_every_exit(site) -> None:
    run_dir = site.fit("soft_triviaqa", **{"model.exits": "[1]", "model.loss": "weighted"})
    rows = summary(run_dir)["results"]
    found = {row["size"] for row in rows if row["metric"] == "case_sensitive_match"}
    assert found == {1, 2}
