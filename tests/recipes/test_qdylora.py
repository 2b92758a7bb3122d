"""The recipe of a quantized language model, on a tiny one: ranks, export, settings."""

import json
import re
import warnings
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lightning_kd.base_record import RECORD
from lightning_kd.quantization import quantize
from tests.recipes.command import summary

STEM = "qdylora_alpaca"
TINY = {
    "model.backend": "reference",  # bitsandbytes is for wider layers
    "model.max_rank": 4,
    "model.evaluation_ranks": "[1, 2, 4]",
    "trainer.precision": "32-true",
}


@pytest.mark.slow
def test_it_reports_every_rank_and_exports_one_for_both_kinds_of_base(site, capsys) -> None:
    run_dir = site.fit(STEM, **TINY)
    said = capsys.readouterr().out
    assert "QDyLoRA: compute_dtype: float32: few processors have bfloat16 arithmetic" in said
    assert "QDyLoRA: optimizer: AdamW in the device's own memory" in said
    found = summary(run_dir)
    assert {r["size"] for r in found["results"] if r["metric"] == "perplexity"} >= {1, 2, 4}
    assert found["notes"]["compute_dtype"].startswith("float32")
    exported = sorted((run_dir / "export").iterdir())
    assert exported
    size = (run_dir / "checkpoints/best.ckpt").stat().st_size
    tokens = torch.tensor([[5, 6, 7, 8]])
    answers = []
    for codes in (True, False):
        base: Any = AutoModelForCausalLM.from_pretrained(site.folder / "writer")
        if codes:
            quantize(base, backend="reference", exclude=["lm_head"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            model = PeftModel.from_pretrained(base, str(exported[0])).eval()
        with torch.no_grad():
            answers.append(model(input_ids=tokens).logits)
    assert size < 150_000
    torch.testing.assert_close(answers[0], answers[1], rtol=0.2, atol=0.2)
    assert not torch.equal(answers[0], answers[1])
    record = json.loads((exported[0] / RECORD).read_text())
    assert (record["kind"], record["double_quant"]) == ("nf4", True)
    config = json.loads((exported[0] / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert not config["modules_to_save"]
    assert "lm_head" not in config["target_modules"]
    assert len(config["target_modules"]) == 7


def test_it_trains_in_mixed_precision_with_clipping(site) -> None:
    run_dir = site.fit(STEM, **{**TINY, "trainer.precision": "bf16-mixed", "trainer.max_epochs": 1})
    values = [r["value"] for r in summary(run_dir)["results"] if r["metric"] == "perplexity"]
    assert all(1 < value < 60 for value in values)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model.paged_optimizer": "true"}, "paged_optimizer=True, but there is no paged AdamW"),
        ({"model.compute_dtype": "auto", "model.max_rank": 0}, "max_rank must be a whole number"),
    ],
)
def test_what_cannot_be_is_one_sentence(setting, message, site, capsys) -> None:
    with pytest.raises(SystemExit):
        site.fit(STEM, **{**TINY, **setting})
    assert re.search(message, capsys.readouterr().err)
