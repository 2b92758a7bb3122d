"""``validate``, ``test`` and ``predict`` go back to a run and leave it as it was."""

import csv

import pytest
import torch

from lightning_kd.methods import DyLoRA
from tests import tiny
from tests.recipes.command import summary


@pytest.fixture
def best(dylora_run):
    """The run's best checkpoint; afterwards, the run is found unchanged."""
    files = {f: f.read_bytes() for f in dylora_run.rglob("*") if f.is_file()}
    yield dylora_run / "checkpoints" / "best.ckpt"
    assert {f: f.read_bytes() for f in dylora_run.rglob("*") if f.is_file()} == files


@pytest.mark.parametrize(("stage", "split"), [("validate", "validation"), ("test", "test")])
def test_evaluating_the_best_checkpoint_gives_the_report_of_the_run(
    stage, split, best, site, dylora_run
) -> None:
    cli = site.run("dylora_glue", stage, "--ckpt_path", best)
    folder = site.folder / cli.run_dir
    assert folder != dylora_run
    of_run = [result for result in summary(dylora_run)["results"] if result["split"] == split]
    assert summary(folder)["results"] == of_run
    assert not (folder / "export").exists()
    assert not (folder / "checkpoints").exists()


def test_predictions_are_the_modules_answers_in_order(best, site) -> None:
    cli = site.run("dylora_glue", "predict", "--ckpt_path", best, "--model.predict_rank", "2")
    with (site.folder / cli.run_dir / "predictions" / "SST-2.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    lines = (site.data / "SST-2/test.tsv").read_text().splitlines()[1:]
    assert [row["index"] for row in rows] == [str(i) for i in range(len(lines))]
    module = DyLoRA.load_from_checkpoint(best).eval()
    for row, line in zip(rows, lines, strict=True):
        words = [5 + tiny.WORDS.index(word) for word in line.split("\t")[0].split()]
        tokens = torch.tensor([[2, *words, 3]])
        with torch.no_grad(), module.at_size(2):
            logits = module.predict({"input_ids": tokens}).logits
        assert row["prediction"] == str(int(logits.argmax()))


def test_an_option_on_the_line_wins_over_the_settings_of_the_run(best, site) -> None:
    cli = site.run(
        "dylora_glue", "validate", "--ckpt_path", best, "--model.evaluation_ranks", "[3]"
    )
    assert {r["size"] for r in summary(site.folder / cli.run_dir)["results"]} == {3}


def test_a_checkpoint_of_another_method_is_refused(lora_run, site, capsys) -> None:
    checkpoint = lora_run / "checkpoints/best.ckpt"
    settings = site.settings(**{"model.max_rank": 2})
    with pytest.raises(SystemExit) as end:
        site.run("dylora_glue", "fit", "--ckpt_path", checkpoint, *settings)
    assert end.value.code == 1
    assert "the checkpoint is of LoRA on sst2, this is DyLoRA on sst2" in capsys.readouterr().err
