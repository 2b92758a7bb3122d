"""SoFT and QDyLoRA on SmolLM2, a few steps each, to exports that transformers and PEFT load."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_kd import methods
from lightning_kd.cli import run
from lightning_kd.data import Instructions
from tests.recipes.command import summary

pytestmark = [pytest.mark.offline, pytest.mark.filterwarnings("default")]
PROJECT = Path(__file__).parents[2]


def finished(name: str, assets: Path, folder: Path, *more: str) -> Any:
    """A run of the recipe with the offline overlay: two steps, eight evaluated examples."""
    if not (assets / "smollm2").is_dir():
        pytest.skip("no assets/smollm2; run `make assets-llm`")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = run(
            getattr(methods, name),
            Instructions,
            [
                *("--config", str(PROJECT / "configs/overlays/offline.yaml")),
                *("--model.student", str(assets / "smollm2")),
                *("--data.data_dir", str(assets / "reviews/instructions")),
                *("--data.cache_dir", str(folder / "cache")),
                *("--trainer.max_steps", "2", "--trainer.log_every_n_steps", "1"),
                *("--trainer.enable_progress_bar", "false"),
                *("--data.batch_size", "2", "--data.limit_eval_examples", "4"),
                *("--data.generate_examples", "1", *more),
            ],
            recipe=PROJECT / "recipes" / f"{name.lower()}_alpaca.py",
        )
    done.run_dir = folder / done.run_dir
    return done


def test_every_depth_is_a_model_of_its_own(assets, tmp_path) -> None:
    done = finished("SoFT", assets, tmp_path, "--export_sizes", "[10,30]")
    found = summary(done.run_dir)
    assert {r["size"] for r in found["results"]} == {10, 15, 20, 25, 30}
    assert (done.run_dir / "report/layers.png").is_file()
    inputs = AutoTokenizer.from_pretrained(assets / "smollm2")("A film", return_tensors="pt")
    student = done.model.student.eval()
    for depth in (10, 30):
        folder = done.run_dir / f"export/layer_{depth}"
        exported: Any = AutoModelForCausalLM.from_pretrained(folder)
        assert len(exported.model.layers) == depth
        with torch.no_grad(), done.model.at_size(depth):
            ours = student(**inputs, output_hidden_states=True)
            if depth == 30:
                assert torch.equal(exported(**inputs).logits, ours.logits)


def test_every_rank_is_an_adapter_on_four_bits(assets, tmp_path) -> None:
    from peft import PeftModel

    settings = ("--model.evaluation_ranks", "[1,64]", "--export_sizes", "[1,64]")
    done = finished("QDyLoRA", assets, tmp_path, *settings)
    assert {r["size"] for r in summary(done.run_dir)["results"]} == {1, 64}
    base: Any = AutoModelForCausalLM.from_pretrained(assets / "smollm2")
    adapted = PeftModel.from_pretrained(base, str(done.run_dir / "export/rank_64"))
    with torch.no_grad():
        assert torch.isfinite(adapted(input_ids=torch.tensor([[1, 2, 3]])).logits).all()
    whole = (assets / "smollm2/model.safetensors").stat().st_size
    kept = (done.run_dir / "checkpoints/last.ckpt").stat().st_size
    assert kept < whole / 2  # adapters and their moments, not the base
