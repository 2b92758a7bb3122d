"""What a run leaves behind: the files, their content, and an export that PEFT loads."""

import csv
import math

import pytest
import torch

from lightning_kd.methods import DyLoRA, FineTuning
from tests import tiny
from tests.recipes.command import summary

KEYS = [
    "method",
    "benchmark",
    "task",
    "model",
    "seed",
    "seconds",
    "environment",
    "data_sha256",
    "results",
]


def files(run_dir) -> set[str]:
    return {str(f.relative_to(run_dir)) for f in run_dir.rglob("*") if f.is_file()}


def test_dylora_writes_the_promised_files_and_no_others(dylora_run, site) -> None:
    assert dylora_run.parent == site.folder / "runs" / "dylora_glue"
    found = files(dylora_run)
    events = {name for name in found if name.startswith("events.out.tfevents")}
    exports = {name for name in found if name.startswith("export/rank_")}
    assert events
    assert found - events - exports == {
        "config.yaml",
        "metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "report/summary.json",
        "report/report.md",
        "report/ranks.png",
        "report/curves.png",
    }
    assert (dylora_run / "report/ranks.png").read_bytes().startswith(b"\x89PNG")
    folders = {name.rpartition("/")[0] for name in exports}
    assert exports == {
        f"{folder}/{name}"
        for folder in folders
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    assert 1 <= len(folders) <= 2
    assert not [name for name in found if "tmp" in name]


def test_summary_has_the_schema(dylora_run, site) -> None:
    found = summary(dylora_run)
    assert list(found) == KEYS
    assert (found["method"], found["benchmark"], found["task"]) == ("DyLoRA", "glue", "sst2")
    assert (found["model"], found["seed"]) == (str(site.model), 0)
    assert 0 < found["seconds"] < 60
    assert len(found["data_sha256"]) == 64
    assert found["environment"]["torch"] == torch.__version__
    results = found["results"]
    assert {tuple(result) for result in results} == {
        ("size", "split", "metric", "value", "trainable_parameters")
    }
    assert [(r["split"], r["size"]) for r in results] == [
        (split, rank) for split in ("validation", "test") for rank in (1, 2, 3, 4)
    ]
    head = 8 * 8 + 8 + 8 * 2 + 2  # pooler and classifier
    assert [r["trainable_parameters"] for r in results[:4]] == [
        head + rank * 4 * (8 + 8) for rank in (1, 2, 3, 4)
    ]
    assert all(0 <= r["value"] <= 1 for r in results)


def test_a_method_without_sizes_has_the_same_schema(lora_run) -> None:
    found = summary(lora_run)
    assert list(found) == KEYS
    assert [(r["size"], r["split"]) for r in found["results"]] == [
        (None, "validation"),
        (None, "test"),
    ]
    assert "report/ranks.png" not in files(lora_run)
    assert "export/model/adapter_model.safetensors" in files(lora_run)


def test_metrics_have_one_row_per_step_and_one_per_validation(dylora_run) -> None:
    with (dylora_run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    trained = [int(row["step"]) for row in rows if row["train/hard"]]
    assert trained == list(range(16))
    assert all(
        row["train/rank"] in {"1.0", "2.0", "3.0", "4.0"} for row in rows if row["train/hard"]
    )
    assert all(math.isfinite(float(row["train/hard"])) for row in rows if row["train/hard"])
    validated = [int(row["step"]) for row in rows if row["val/rank_3/accuracy"]]
    assert validated[:2] == [7, 15]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_report_is_of_the_best_weights(dylora_run, split, site) -> None:
    with (dylora_run / "metrics.csv").open() as file:
        means = [
            float(r["val/mean/accuracy"]) for r in csv.DictReader(file) if r["val/mean/accuracy"]
        ]
    values = [r["value"] for r in summary(dylora_run)["results"] if r["split"] == "validation"]
    assert sum(values) / 4 == pytest.approx(max(means[:2]))
    rows = (dylora_run / "report/report.md").read_text().splitlines()
    for value in [r["value"] for r in summary(dylora_run)["results"] if r["split"] == split]:
        assert any(f"{value:.4f}" in row for row in rows)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT 0.21
def test_exports_load_in_peft_and_answer_as_the_module_at_that_rank(site, tmp_path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    run_dir = site.fit("dylora_glue", "--export_sizes", "[1, 3]", **{"model.max_rank": 4})
    assert sorted(p.name for p in (run_dir / "export").iterdir()) == ["rank_1", "rank_3"]
    module = DyLoRA.load_from_checkpoint(run_dir / "checkpoints/best.ckpt").eval()
    batch = tiny.batch(6)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    answers = []
    for rank in (1, 3):
        base = AutoModelForSequenceClassification.from_pretrained(str(site.model))
        adapter = PeftModel.from_pretrained(base, str(run_dir / "export" / f"rank_{rank}")).eval()
        with torch.no_grad(), module.at_size(rank):
            answers.append(adapter(**inputs).logits)
            assert torch.equal(answers[-1], module.predict(batch).logits)
    assert not torch.equal(*answers)


def test_references_are_listed_beside_the_run(site, lora_run) -> None:
    limits = {"model.max_rank": 2, "trainer.max_epochs": 1, "trainer.limit_train_batches": 1}
    run_dir = site.fit("dylora_glue", "--references", f"[{lora_run}]", **limits)
    page = (run_dir / "report/report.md").read_text()
    assert "## References" in page
    assert f"../../../{lora_run.parent.name}/{lora_run.name}" in page


def test_fine_tuning_exports_a_model_that_transformers_loads(site) -> None:
    from transformers import AutoModelForSequenceClassification

    run_dir = site.fit("fine_tuning_glue", **{"trainer.max_epochs": 1})
    model = AutoModelForSequenceClassification.from_pretrained(str(run_dir / "export/model"))
    module = FineTuning.load_from_checkpoint(run_dir / "checkpoints/best.ckpt").eval()
    batch = tiny.batch(6)
    with torch.no_grad():
        there = model(batch["input_ids"], batch["attention_mask"]).logits
        assert torch.equal(there, module.predict(batch).logits)
    assert model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.filterwarnings("ignore:.ModelCheckpoint.*could not find the monitored key")
def test_a_run_that_ends_inside_an_epoch_has_its_last_step_and_a_report(site) -> None:
    run_dir = site.fit("fine_tuning_glue", **{"trainer.max_steps": 3})
    last = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    found = summary(run_dir)
    assert {r["split"] for r in found["results"]} == {"validation", "test"}
    assert found["notes"]["weights"] == "the last ones: training ended before a validation"


def test_a_checkpoint_callback_of_the_users_is_not_taken_for_the_best(site, tmp_path) -> None:
    worst = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": str(tmp_path), "monitor": "val/accuracy", "mode": "min"},
    }
    more = {"trainer.callbacks": f"[{worst}]", "trainer.max_epochs": 4}
    run_dir = site.fit("fine_tuning_glue", **more)
    with (run_dir / "metrics.csv").open() as file:
        best = max(float(r["val/accuracy"]) for r in csv.DictReader(file) if r["val/accuracy"])
    found = summary(run_dir)["results"]
    (value,) = [r["value"] for r in found if r["split"] == "validation"]
    assert value == pytest.approx(best)
    assert list(tmp_path.glob("*.ckpt"))
