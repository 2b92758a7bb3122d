"""The main job on the real encoder and real reviews; needs the assets folder."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lightning_kd.cli import RecipeCLI, run
from lightning_kd.data import GLUE
from lightning_kd.methods import DyLoRA

pytestmark = [pytest.mark.offline, pytest.mark.filterwarnings("default")]
PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> RecipeCLI:
    """The recipe with the offline overlay, cut to a few steps, every rank exported."""
    folder = tmp_path_factory.mktemp("offline")
    overlays = PROJECT / "configs" / "overlays"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = run(
            DyLoRA,
            GLUE,
            [
                *("--config", str(overlays / "offline.yaml")),
                *("--config", str(overlays / "debug.yaml")),
                *("--model.student", str(assets / "minilm")),
                *("--data.data_dir", str(assets / "reviews")),
                *("--trainer.enable_progress_bar", "false"),
                *("--export_sizes", json.dumps(list(range(1, 9)))),
            ],
            recipe=PROJECT / "recipes" / "dylora_glue.py",
        )
    done.run_dir = folder / done.run_dir
    return done


def test_every_exported_rank_answers_bit_for_bit_as_the_module(
    finished: RecipeCLI, assets: Path
) -> None:
    from peft import PeftModel

    module, run_dir = finished.model, finished.run_dir
    assert isinstance(module, DyLoRA)
    module.eval()
    folders = sorted((run_dir / "export").iterdir())
    assert [folder.name for folder in folders] == [f"rank_{b}" for b in range(1, 9)]
    batch = next(iter(finished.datamodule.val_dataloader()[0]))
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "idx")}
    answers = []
    for rank, folder in enumerate(folders, start=1):
        base = AutoModelForSequenceClassification.from_pretrained(assets / "minilm", num_labels=2)
        theirs = PeftModel.from_pretrained(base, str(folder)).eval()
        with torch.no_grad(), module.at_size(rank):
            ours = module.predict(batch).logits
            assert torch.equal(ours, theirs(**inputs).logits)
        answers.append(ours)
    assert not torch.equal(answers[0], answers[-1])  # training made the ranks differ


def test_summary_has_every_rank_on_both_splits(finished: RecipeCLI) -> None:
    summary = json.loads((finished.run_dir / "report" / "summary.json").read_text())
    seen = {(r["split"], r["size"]) for r in summary["results"]}
    assert seen == {(split, b) for split in ("validation", "test") for b in range(1, 9)}
    counts = {r["size"]: r["trainable_parameters"] for r in summary["results"]}
    # 6 layers x (query, value) x (384 + 384) for each component
    assert counts[8] - counts[1] == 7 * 6 * 2 * 768
