"""The evidence's bookkeeping, its arms, and what its report says of known numbers."""

import copy
import json

import lightning as L
import pytest
import torch
from datasets import Dataset

from benchmarks import distillation_evidence as evidence
from benchmarks import distillation_report as report
from benchmarks.distillation_arms import ARMS, RIVALS, Sample, grid
from benchmarks.distillation_training import fit, load
from benchmarks.label_regularization_study import evaluated
from lightning_kd.callbacks import StudentAveraging
from lightning_kd.data import GLUE
from lightning_kd.methods import AnnealingKD, FineTuning
from tests import tiny

CLEAN, NOISY = grid(ARMS, 0.0), grid(ARMS, 0.4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    model = tiny.model_folder(folder / "model")
    return folder, model, tiny.sst2_folder(folder / "data", train=64, dev=24)


@pytest.fixture(autouse=True)
def one_layer(monkeypatch):
    monkeypatch.setattr(evidence, "CUTS", {2: (0,)})


def command(folders, name, *more) -> list[str]:
    folder, model, data = folders
    words = ["--model", model, "--data_dir", data, "--examples", 24, "--epochs", 3]
    words += ["--teacher_epochs", 1, "--holdout_fraction", 0.3, "--batch_size", 8]
    words += ["--max_length", 16, "--output", folder / f"{name}.jsonl"]
    return [str(word) for word in (*words, *more)]


def read(folders, name):
    lines = (folders[0] / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def reported(folders, name):
    return [r for r in read(folders, name) if r["stage"] == "report"]


# The arms


def test_the_grid_of_wrong_labels_has_the_arms_that_it_is_about() -> None:
    assert set(ARMS) == {*CLEAN, *NOISY}
    assert set(CLEAN) & set(NOISY) == {"fine_tuning", "vanilla_kd", "co_distill", "label_refine"}
    assert set(RIVALS) <= set(CLEAN)


def test_a_sample_is_the_seeds_and_in_order() -> None:
    examples = Dataset.from_dict({"idx": list(range(100))})
    chosen = Sample(10, 0)(examples)["idx"]
    assert chosen == sorted(chosen)
    assert chosen == Sample(10, 0)(examples)["idx"] != Sample(10, 1)(examples)["idx"]
    assert len(Sample(1000, 0)(examples)) == 100
    assert Sample(10, 0).fingerprint() != Sample(10, 1).fingerprint()


def test_arms_of_other_lengths_are_refused(tmp_path) -> None:
    module = AnnealingKD(tiny.model(), "sst2", tiny.model(), 1, teacher_epochs=2, label_epochs=2)
    with pytest.raises(ValueError, match="AnnealingKD has 4 epochs, the others 5"):
        fit(module, L.LightningDataModule(), 5, tmp_path, "32-true")


def test_the_module_has_its_best_epoch_and_then_any_other_state(folders, tmp_path) -> None:
    _, model, data_dir = folders
    data = GLUE("sst2", str(model), str(data_dir), batch_size=8, holdout_fraction=0.3)
    data.setup()
    (held,) = data.val_dataloader()
    module = FineTuning(str(model), "sst2", learning_rate=0.02, lr_schedule="constant")
    averaging = StudentAveraging(start_after=2)
    done = fit(module, data, 4, tmp_path, "32-true", [averaging])
    assert done.states == ("last", "raw")
    assert evaluated(module, held)["accuracy"] == pytest.approx(done.validation)
    load(module, done.last)
    average = copy.deepcopy(module.student.state_dict())
    load(module, done.last, raw=True)
    raw = module.student.state_dict()
    assert not torch.equal(average["classifier.weight"], raw["classifier.weight"])


# The bookkeeping


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_arm_runs_and_a_killed_study_goes_on(folders) -> None:
    begun = command(folders, "all", "--seeds", 0, "--noise", 0)
    evidence.main([*begun, "--arms", "fine_tuning", "vanilla_kd"])
    before = read(folders, "all")
    assert [r["arm"] for r in before if r["stage"] == "report"] == ["fine_tuning", "vanilla_kd"]
    evidence.main(command(folders, "all", "--seeds", 0, "--noise", 0, 0.4))
    after = read(folders, "all")
    assert after[: len(before)] == before
    found = [(r["arm"], r["noise"]) for r in after if r["stage"] == "report"]
    assert sorted(found) == sorted([(a, 0.0) for a in CLEAN] + [(a, 0.4) for a in NOISY])
    assert not any(r["failed"] for r in after)
    tuned = [r for r in after if r["stage"] == "tune"]
    assert sorted((r["arm"], r["rate"]) for r in tuned) == sorted(
        (arm, rate) for arm in RIVALS for rate in (1e-4, 2e-4, 4e-4)
    )
    assert not any("accuracy" in r["scores"] for r in tuned)  # the test set chooses nothing
    assert [r["noise"] for r in after if r["stage"] == "teacher"] == [0.0, 0.4]
    changed = {r["arm"]: r["about"]["labels_changed"] for r in after if r["noise"] == 0.4}
    assert changed.pop("vanilla_kd_noisy_teacher") == 0
    assert len(set(changed.values())) == 1
    assert changed["teacher"] > 0
    evidence.main(command(folders, "all", "--seeds", 0, "--noise", 0, 0.4))
    assert read(folders, "all") == after
    with pytest.raises(SystemExit, match=r"all.jsonl has runs with .*give another --output"):
        evidence.main([*begun, "--epochs", "4"])


def test_a_training_that_diverged_is_kept_and_not_tried_again(folders, monkeypatch) -> None:
    calls = []

    def diverge(*args):
        calls.append(args)
        raise FloatingPointError("the term hard became nan")

    monkeypatch.setattr(evidence, "fit", diverge)
    arguments = command(folders, "failed", "--seeds", 0, "--noise", 0, "--rates", 1e-3)
    for _ in range(2):
        evidence.main([*arguments, "--arms", "fine_tuning", "self_kd"])
    tried, without_copy = reported(folders, "failed")
    assert (tried["failed"], tried["scores"]) == ("the term hard became nan", {})
    assert without_copy["failed"] == "no copy to learn from: the term hard became nan"
    assert len(calls) == 1


def test_a_trial_that_another_process_is_at_is_left_to_it(folders) -> None:
    options = evidence.parse(command(folders, "shared", "--rates", 1e-3))
    ours, theirs = evidence.Study(options), evidence.Study(options)
    with theirs.claimed("report-fine_tuning-2-0.0-0-0.001"):
        assert ours.trial("report", "fine_tuning", 2, 0.0, 0, 1e-3, wait=False) == {}
    assert not ours.output.exists()


def test_the_rate_is_the_best_of_the_rivals_mean_and_can_be_taken_from_elsewhere(folders) -> None:
    path = folders[0] / "tuned.jsonl"
    scores = {1e-4: (0.9, 0.6), 2e-4: (0.8, 0.8), 4e-4: (0.99, None)}
    records = [
        {"stage": "tune", "rate": rate, "scores": {"validation": score} if score else {}}
        for rate, found in scores.items()
        for score in found
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    study = evidence.Study(evidence.parse(command(folders, "taken", "--tuned_on", path)))
    assert study.chosen(2) == 2e-4


# The report


def record(arm, seed, accuracy, noise=0.0, failed=None, **states):
    scores = {"accuracy": accuracy, "max_probability": 0.8, "entropy": 0.4, "ece": 0.1}
    scores |= {name: {"accuracy": value} for name, value in states.items()}
    scores.setdefault("last", {"accuracy": accuracy - 0.01})
    versions = dict.fromkeys(("torch", "lightning", "transformers", "lightning-kd"), "1.0")
    return {
        "stage": "report", "arm": arm, "cut": 2, "noise": noise, "seed": seed, "rate": 1e-4,
        "scores": {} if failed else scores, "failed": failed, "seconds": {"cpu": 10.0},
        "options": {"task": "sst2"}, "about": {"data_sha256": "0" * 64, **versions},
    }  # fmt: skip


@pytest.fixture
def page(tmp_path):
    made = [record("fine_tuning", s, a) for s, a in enumerate((0.70, 0.71, 0.72))]
    made += [record("vanilla_kd", s, a) for s, a in enumerate((0.71, 0.73, 0.75))]
    made += [record("logit_mse", s, a) for s, a in enumerate((0.75, 0.76, 0.77))]
    made += [record("tf_reg", 0, 0.0, failed="nan"), record("tf_reg", 1, 0.7)]
    made += [record("fine_tuning", s, a, 0.4) for s, a in enumerate((0.60, 0.61, 0.62))]
    made += [record("co_distill", s, a, 0.4) for s, a in enumerate((0.65, 0.66, 0.70))]
    made += [
        record("averaging", s, 0.75, last=0.74, raw=a) for s, a in enumerate((0.72, 0.73, 0.74))
    ]
    runs = tmp_path / "runs.jsonl"
    runs.write_text("\n".join(map(json.dumps, made)))
    page = tmp_path / "page.md"
    page.write_text("# Title\n<!-- reviews -->\nold\n<!-- /reviews -->\nend\n")
    report.main([str(page), f"reviews={runs}"])
    return page


def test_differences_are_paired_by_seed_with_a_t_interval(page) -> None:
    lines = page.read_text().splitlines()
    (kd,) = [line for line in lines if line.startswith("| `vanilla_kd`")]
    # differences 1, 2, 3: mean 2, t_{2, 0.975} = 4.303 times 1 / sqrt(3)
    assert kd.startswith(
        "| `vanilla_kd` | 3 | 73.0 ± 2.0 | +2.0 [-0.5, +4.5] | **-3.0 [-5.5, -0.5]"
    )
    assert kd.endswith("| 72.0 ± 2.0 | +2.0 [-0.5, +4.5] | 0.80 | 0.40 | 0.10 |")
    (mse,) = [line for line in lines if line.startswith("| `logit_mse`")]
    assert "| **+5.0 [+5.0, +5.0]** | - | **+3.0 [+0.5, +5.5]** |" in mse


def test_failures_are_counted_and_lone_runs_have_no_interval(page) -> None:
    (line,) = [line for line in page.read_text().splitlines() if line.startswith("| `tf_reg`")]
    assert "| 1 (1 failed) | 70.0 | - | - | - | 69.0 | - |" in line


def test_a_page_of_lone_runs_can_be_written(tmp_path) -> None:
    runs, page = tmp_path / "runs.jsonl", tmp_path / "page.md"
    runs.write_text(json.dumps(record("fine_tuning", 0, 0.7)))
    page.write_text("<!-- reviews -->\n<!-- /reviews -->\n")
    report.main([str(page), f"reviews={runs}"])
    assert "| `fine_tuning` | 1 | 70.0 | - |" in page.read_text()
    assert "t-test" not in page.read_text()


def test_an_average_is_compared_with_the_last_weights_of_the_same_run(page) -> None:
    lines = page.read_text().splitlines()
    place = lines.index("Averaging, nothing chosen by validation:")
    average, same, decay = lines[place + 4 : place + 7]
    assert average == "| average of the second half | 74.0 ± 0.0 | - |"
    assert same.endswith("constant rate | 73.0 ± 1.0 | +1.0 [-1.5, +3.5] |")
    assert decay.endswith("(`fine_tuning`) | 70.0 ± 1.0 | **+4.0 [+1.5, +6.5]** |")


def test_wrong_labels_are_compared_at_the_same_rate(page) -> None:
    text = page.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| `co_distill`")]
    assert line == "| `co_distill` | - | 67.0 ± 2.6 | **+6.0 [+1.7, +10.3]** |"
    assert text.startswith("# Title\n<!-- reviews -->\n### reviews, 2-layer students: accuracy\n")
    assert text.endswith("<!-- /reviews -->\nend\n")
    assert (page.parent / "distillation_reviews_2.png").stat().st_size > 0


def test_a_page_without_its_markers_is_an_error(tmp_path) -> None:
    with pytest.raises(SystemExit, match="the page has no <!-- reviews -->"):
        report.rewritten("nothing", {"reviews": str})
