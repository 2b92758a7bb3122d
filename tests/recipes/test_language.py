"""Recipes of language models, on a tiny one that learns to repeat two words."""

import csv
import json
import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.recipes.command import summary


def test_fine_tuning_writes_a_model_that_transformers_loads(site) -> None:
    run_dir = site.fit("fine_tuning_alpaca")
    found = {(r["split"], r["metric"]): r for r in summary(run_dir)["results"]}
    assert {split for split, _ in found} == {"validation", "test"}
    perplexity = found["validation", "perplexity"]
    assert 1 < perplexity["value"] < 40  # below the number of words
    report = (run_dir / "report/report.md").read_text()
    assert re.search(r"perplexity.*± [1-9.]", report)
    model = AutoModelForCausalLM.from_pretrained(run_dir / "export/model")
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "export/model")
    with torch.no_grad():
        logits = model(**tokenizer(["w1 w2"], return_tensors="pt")).logits
    assert logits.shape == (1, 2, 40)


def test_the_lowest_perplexity_is_kept(site) -> None:
    run_dir = site.fit("fine_tuning_alpaca", **{"model.learning_rate": 1.0})  # diverges at once
    with (run_dir / "metrics.csv").open() as file:
        values = [float(v) for row in csv.DictReader(file) if (v := row.get("val/perplexity"))]
    kept = next(r for r in summary(run_dir)["results"] if r["metric"] == "perplexity")["value"]
    assert max(values) > 2 * min(values)
    assert abs(kept - min(values)) < 1e-3 * kept


def test_predict_writes_a_text_for_every_prompt(site) -> None:
    run_dir = site.fit("lora_alpaca", **{"model.rank": 2})
    best = run_dir / "checkpoints/best.ckpt"
    settings = site.settings("lora_alpaca", **{"model.rank": 2})
    again = site.run("lora_alpaca", "predict", "--ckpt_path", best, *settings)
    (file,) = (site.folder / again.run_dir).rglob("predictions.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["idx"] for row in rows] == list(range(8))
    assert all(row["prompt"].startswith("### Instruction") for row in rows)
