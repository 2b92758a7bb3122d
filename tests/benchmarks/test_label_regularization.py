"""The study's bookkeeping and what its report says of known numbers."""

import json

import pytest

from benchmarks import label_regularization_digits as digits
from benchmarks import label_regularization_study as study
from benchmarks.label_regularization_report import collect, comparisons, print_report
from tests import tiny

A = (0.704, 0.715, 0.697, 0.722, 0.712)
B = (0.711, 0.718, 0.700, 0.715, 0.726)


def record(arm, seed, accuracy, init="pretrained", task="sst2", **more):
    scores = {"accuracy": accuracy, "max_probability": 0.9 - 0.1 * (arm == "label_smoothing")}
    scores |= {"ece": 0.05, "entropy": 0.3, "answered_classes": 2, **more.pop("scores", {})}
    place = {"stage": "report", "arm": arm, "init": init, "seed": seed, "setting": {}}
    return {**place, "scores": scores, "failed": None, "options": {"task": task}, **more}


def records(init="pretrained", task="sst2", shift=0.0):
    arms = {"none": A, "label_smoothing": B, "kd": A[::-1]}
    return [
        record(arm, seed, value + shift, init, task)
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


def test_b11_the_report_tests_every_arm_against_fine_tuning(capsys) -> None:
    print_report(records(), margin=2.0)
    out = capsys.readouterr().out
    (scores,) = [line for line in out.splitlines() if line.startswith("none ")]
    assert "71.00    0.97   71.20" in scores
    scored, tested = (line for line in out.splitlines() if line.startswith("label_smoothing  "))
    assert "71.40    0.96   71.50" in scored
    for number in ("+0.40", "0.5303", "0.3054", "0.3750", "0.5635", "0.0153", "equivalent"):
        assert number in tested
    assert "2.02 deviations (here 1.97 points)" in out
    assert "lowers the mean largest probability in 5 of 5 seeds" in out


def test_failed_runs_are_counted_and_left_out_and_collapsed_ones_stay(capsys) -> None:
    made = records()
    made[7] = record("label_smoothing", 2, 0.0, failed="the term hard became nan", scores={})
    made[8] = record("label_smoothing", 3, 0.715, scores={"answered_classes": 1})
    print_report(made, margin=1.0)
    assert "label_smoothing     5    1    1" in capsys.readouterr().out
    arms = collect(made)["pretrained", "sst2"]
    assert comparisons(arms, 1.0)["label_smoothing"].sign_flip == pytest.approx(2 * 4 / 2**4)


def test_several_tasks_are_corrected_together_and_averaged(capsys) -> None:
    made = [*records(), *records(task="mrpc"), *records("random", shift=-0.1)]
    print_report(made, margin=1.0)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "0.5303" in line]
    assert [line.split()[3] for line in lines] == ["1.0000"] * 3
    assert "average of sst2, mrpc, pretrained student" in out
    assert "by pre-training, of plain fine-tuning: +10.00" in out
    assert "random student: +0.40 (label_smoothing)" in out


def test_one_seed_is_reported_without_tests(capsys) -> None:
    print_report([record("none", 0, 0.7), record("kd", 0, 0.8)], margin=1.0)
    assert "no tests: they need fine-tuning" in capsys.readouterr().out


def test_every_arm_has_as_many_trials() -> None:
    rates = (1e-5, 2e-5, 5e-5, 1e-4)
    assert {len(study.grid(arm, rates)) for arm in study.ARMS} == {4}
    assert len({str(s) for s in study.grid("none", rates)}) == 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    model = tiny.model_folder(folder / "model")
    return folder, model, tiny.sst2_folder(folder / "data", train=48, dev=24)


def command(folders, *more) -> list[str]:
    folder, model, data = folders
    words = ["--student", model, "--teacher", model, "--data_dir", data, "--layers", 1]
    words += ["--steps", 3, "--teacher_steps", 3, "--batch_size", 4, "--max_length", 16]
    words += ["--holdout_fraction", 0.3, "--seeds", 2, "--output", folder / "sst2.jsonl"]
    return [str(word) for word in (*words, *more)]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_killed_study_goes_on_and_reports_all_arms(folders, capsys) -> None:
    folder = folders[0]
    study.main(command(folders, "--inits", "pretrained", "--arms", "none", "label_smoothing"))
    before = (folder / "sst2.jsonl").read_text()
    made = [json.loads(line) for line in before.splitlines()]
    assert len(made) == 2 * (4 + 2)
    assert {r["seed"] for r in made if r["stage"] == "tune"} == {study.TUNING_SEED}
    capsys.readouterr()
    study.main(command(folders))
    after = (folder / "sst2.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 2 * 5 * (4 + 2)
    out = capsys.readouterr().out
    assert "tune pretrained none" not in out
    for init in study.INITS:
        assert f"sst2, {init} student, accuracy in points" in out
    assert out.count("self_kd          ") == 4  # scores and tests of both
    with pytest.raises(SystemExit, match=r"sst2.jsonl has runs with .*give another --output"):
        study.main(command(folders, "--steps", 5))


@pytest.mark.slow
def test_runs_of_a_seed_share_head_order_and_dropout(folders) -> None:
    made = study.Study(study.parse(command(folders)))
    setting = {"learning_rate": 0.01, "alpha": 0.0}
    arms = [made.trained(arm, "random", 5, setting) for arm in ("none", "label_smoothing", "kd")]
    first, *others = (module.student.state_dict() for module in arms)
    for other in others:
        assert all((first[name] == other[name]).all() for name in first)


def test_a_study_of_no_benchmark_says_what_it_measures(capsys) -> None:
    told = {"task": "digits", "metric": "accuracy", "classes": 10}
    arms = {"none": A, "label_smoothing": B, "tf_reg": B}
    made = [record(a, s, v, options=told) for a, vs in arms.items() for s, v in enumerate(vs)]
    print_report(made, margin=2.0)
    out = capsys.readouterr().out
    assert "digits, pretrained student, accuracy in points" in out
    assert "two classes" not in out
    print_report([{**r, "options": {**told, "classes": 2}} for r in made], margin=2.0)
    assert "two classes" in capsys.readouterr().out


def test_every_arm_of_the_digits_has_as_many_trials() -> None:
    assert {len(digits.grid(arm)) for arm in digits.ARMS} == {4}
    assert (
        len({len({t["learning_rate"] for t in digits.grid(arm)}) for arm in digits.ARMS[1:]}) == 1
    )
