"""SQuAD as a command: a report of questions, answers in words, two processes like one."""

import json

import pytest

from tests import tiny
from tests.kill import ROOT, run_to_end
from tests.recipes.command import Site, summary

SETTINGS = {"data.max_question_length": 4, "data.doc_stride": 4, "model.learning_rate": 0.01}


def squad_site(folder) -> Site:
    model = tiny.model_folder(folder / "model")
    return Site(folder, model, tiny.squad_folder(folder / "data"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder, and the run of SQuAD 2.0 in it."""
    site = squad_site(tmp_path_factory.mktemp("squad"))
    return site, site.fit("fine_tuning_squad", **SETTINGS, **{"data.task": "squad_v2"})


def test_the_report_has_the_official_metrics_in_fractions_with_errors(ran) -> None:
    _, run_dir = ran
    found = {r["metric"]: r["value"] for r in summary(run_dir)["results"]}
    assert list(found) == ["f1", "exact_match", "has_answer_f1", "no_answer_f1"]
    assert all(0 <= value <= 1 for value in found.values())
    # half of the questions have an answer
    assert found["f1"] == pytest.approx((found["has_answer_f1"] + found["no_answer_f1"]) / 2)
    report = (run_dir / "report/report.md").read_text()
    assert report.count(" ± ") >= 2


@pytest.fixture(scope="module")
def written(ran):
    """What `predict` wrote: a text by question."""
    site, run_dir = ran
    command = ["predict", "--config", run_dir / "config.yaml"]
    cli = site.run("fine_tuning_squad", *command, "--ckpt_path", run_dir / "checkpoints/best.ckpt")
    return json.loads((site.folder / cli.run_dir / "predictions/predictions.json").read_text())


def test_predictions_are_words_of_the_passages(ran, written) -> None:
    site, _ = ran
    dev = json.loads((site.data / "dev-v2.0.json").read_text())["data"]
    passages = {e["id"]: p["context"] for a in dev for p in a["paragraphs"] for e in p["qas"]}
    assert set(written) == set(passages)
    assert all(text in passages[name] for name, text in written.items())


def test_the_metrics_are_those_of_the_written_predictions(ran, written) -> None:
    """Exact match counted again, from the two files alone."""
    site, run_dir = ran
    dev = json.loads((site.data / "dev-v2.0.json").read_text())["data"]
    entries = [e for a in dev for p in a["paragraphs"] for e in p["qas"]]
    truths = {e["id"]: e["answers"][0]["text"] if e["answers"] else "" for e in entries}
    exact = sum(written[name] == truth for name, truth in truths.items()) / len(truths)
    found = {r["metric"]: r["value"] for r in summary(run_dir)["results"]}
    assert found["exact_match"] == pytest.approx(exact)


@pytest.mark.ddp
@pytest.mark.timeout(300)
def test_two_processes_score_the_questions_as_one_does(tmp_path, monkeypatch) -> None:
    """Windows of a question are on both, and the file is written once."""
    site = squad_site(tmp_path)
    more = {**SETTINGS, "data.task": "squad_v2", "trainer.devices": 2, "trainer.max_epochs": 1}
    overlay = f"--config={ROOT}/configs/overlays/ddp_cpu.yaml"
    monkeypatch.chdir(tmp_path)
    recipe = ROOT / "recipes" / "fine_tuning_squad.py"
    run_to_end([recipe, overlay, *site.settings(**more)], timeout=280)
    (pair,) = site.runs()
    folder = tmp_path / "alone"
    folder.mkdir()
    one = {**more, "trainer.devices": 1, "data.batch_size": 8}
    alone = Site(folder, site.model, site.data).fit("fine_tuning_squad", **one)
    assert summary(pair)["results"] == summary(alone)["results"]
    best = pair / "checkpoints/best.ckpt"
    command = ["predict", f"--config={pair}/config.yaml", f"--ckpt_path={best}"]
    run_to_end([recipe, *command], timeout=280)
    (file,) = tmp_path.glob("runs/*/*/predictions/predictions.json")
    assert len(json.loads(file.read_text())) == 12
