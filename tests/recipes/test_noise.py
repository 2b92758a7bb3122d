"""Label noise on the command line: by the words the README has, and reported as observed."""

import pytest

from tests.recipes.command import summary

WORDS = [
    "--data.train_transforms+=lightning_kd.data.FlipLabels",
    "--data.train_transforms.rate=0.3",
    "--data.train_transforms.seed=4",
]
FLIPPED = "FlipLabels(kind=symmetric, rate=0.3, seed=4)"


def test_noise_is_in_the_summary_the_page_and_on_the_terminal(site, capsys) -> None:
    clean = summary(site.fit("fine_tuning_glue", **{"trainer.max_epochs": 1}))
    capsys.readouterr()
    folder = site.fit("fine_tuning_glue", *WORDS, **{"trainer.max_epochs": 1})
    noisy, terminal = summary(folder), capsys.readouterr().out
    assert "notes" not in clean
    assert noisy.keys() - clean.keys() == {"notes"}
    notes = noisy["notes"]
    assert notes["train_transforms"] == [FLIPPED]
    assert notes["train_examples"] == 32
    assert 0 < notes["labels_changed"] < 20
    assert notes["observed_flip_rate"] == notes["labels_changed"] / 32
    rate = f"{notes['observed_flip_rate']:.4g}"
    assert f"Train transforms: {FLIPPED}" in terminal
    assert f"Observed flip rate: {rate}" in terminal
    page = (folder / "report" / "report.md").read_text()
    assert f"| train transforms | {FLIPPED} |" in page
    assert f"| observed flip rate | {rate} |" in page


def test_noise_on_a_regression_is_refused_before_training(site, capsys) -> None:
    before = site.runs()
    with pytest.raises(SystemExit):
        site.fit("fine_tuning_glue", *WORDS, **{"data.task": "stsb"})
    assert "labels that are classes; stsb is a regression" in capsys.readouterr().err
    assert site.runs() == before


def test_refined_labels_are_in_the_summary_and_their_teachers_answers_in_the_run(site) -> None:
    settings = {"model.mitigation": "label_refine", "model.teacher": site.model}
    settings |= {"model.folds": 2, "model.fold_epochs": 1, "model.fold_learning_rate": 0.02}
    folder = site.fit("noisy_label_kd_glue", **settings, **{"trainer.max_epochs": 1})
    notes = summary(folder)["notes"]
    assert notes["train_transforms"] == ["FlipLabels(kind=symmetric, rate=0.2, seed=0)"]
    assert notes["refinement"] == "hard"
    assert 0 <= notes["labels_replaced"] <= notes["estimated_noise_rate"] <= 1
    assert len(list((folder / "out_of_fold").glob("*.npz"))) == 2
