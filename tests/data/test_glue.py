"""The nine tasks of GLUE from published files and from a Hub dataset."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_kd.data import GLUE
from tests.data.conftest import write

MNLI = [
    *("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse"),
    *("sentence1_parse", "sentence2_parse", "sentence1", "sentence2"),
]
STSB = ["index", "genre", "filename", "year", "old_index", "source1", "source2"]
FILL = ["x"] * 8

PUBLISHED: dict[str, tuple[str, list[list[str]], list[tuple[str, str | None, Any]]]] = {
    # task: folder, lines of the file, (sentence1, sentence2, label) expected
    "cola": (
        "CoLA",
        [["gj04", "1", "", "They drank ."], ["gj04", "0", "*", "They drank ."]],
        [("They drank .", None, 1), ("They drank .", None, 0)],
    ),
    "sst2": (
        "SST-2",
        [["sentence", "label"], ['a "good" film', "1"]],
        [('a "good" film', None, 1)],
    ),
    "mrpc": (
        "MRPC",
        [
            ["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
            ["1", "7", "8", '" a', "b"],
        ],
        [('" a', "b", 1)],
    ),
    "stsb": (
        "STS-B",
        [[*STSB, "sentence1", "sentence2", "score"], [*"0123456", "a", "b", "3.800"]],
        [("a", "b", 3.8)],
    ),
    "qqp": (
        "QQP",
        [
            ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
            [*"012", "a ?", "b ?", "1"],
        ],
        [("a ?", "b ?", 1)],
    ),
    "mnli": (
        "MNLI",
        [[*MNLI, "label1", "gold_label"], [*FILL, "a", "b", "neutral", "contradiction"]],
        [("a", "b", 2)],
    ),
    "qnli": (
        "QNLI",
        [["index", "question", "sentence", "label"], ["0", "a", "b", "not_entailment"]],
        [("a", "b", 1)],
    ),
    "rte": (
        "RTE",
        [["index", "sentence1", "sentence2", "label"], ["0", "a", "b", "entailment"]],
        [("a", "b", 0)],
    ),
    "wnli": (
        "WNLI",
        [["index", "sentence1", "sentence2", "label"], ["0", "a", "b", "1"]],
        [("a", "b", 1)],
    ),
}


def make(task: str, data_dir: Path | None, **options: Any) -> GLUE:
    return GLUE(
        task, "never-loaded", data_dir=None if data_dir is None else str(data_dir), **options
    )


def published(root: Path, task: str) -> Path:
    folder, lines, _ = PUBLISHED[task]
    evaluated = ("dev_matched", "dev_mismatched") if task == "mnli" else ("dev",)
    for name in ("train", *evaluated):
        write(root / folder / f"{name}.tsv", lines)
    return root


def rows(split: Any) -> list[tuple[str, str | None, Any]]:
    second = split["sentence2"] if "sentence2" in split.column_names else [None] * len(split)
    return list(zip(split["sentence1"], second, split["label"], strict=True))


def test_every_task_has_a_published_example() -> None:
    assert set(PUBLISHED) == set(GLUE.tasks)


@pytest.mark.parametrize("task", sorted(PUBLISHED))
@pytest.mark.parametrize("inside", [False, True], ids=["root", "task folder"])
def test_published_files_are_read(tmp_path, task, inside) -> None:
    root = published(tmp_path, task)
    splits = make(task, root / PUBLISHED[task][0] if inside else root).read()
    main = ["train", "validation"]
    assert list(splits) == main + ["validation_mismatched"] * (task == "mnli")
    for split in splits.values():
        assert rows(split) == PUBLISHED[task][2]


def test_labels_have_the_order_of_the_hub() -> None:
    hub = {  # the ClassLabel names of nyu-mll/glue
        "cola": ["unacceptable", "acceptable"],
        "sst2": ["negative", "positive"],
        "mrpc": ["not_equivalent", "equivalent"],
        "qqp": ["not_duplicate", "duplicate"],
        "mnli": ["entailment", "neutral", "contradiction"],
        "qnli": ["entailment", "not_entailment"],
        "rte": ["entailment", "not_entailment"],
        "wnli": ["not_entailment", "entailment"],
    }
    tasks: dict[str, Any] = dict(GLUE.tasks)
    assert {name: list(tasks[name].labels) for name in hub} == hub


def test_metrics_are_the_official_ones() -> None:
    official = {
        **dict.fromkeys(("sst2", "mnli", "qnli", "rte", "wnli"), ("accuracy",)),
        **dict.fromkeys(("mrpc", "qqp"), ("accuracy", "f1")),
        "cola": ("matthews",),
        "stsb": ("pearson", "spearman"),
    }
    assert {name: task.metric_names for name, task in GLUE.tasks.items()} == official


def test_mnli_without_the_mismatched_file_warns_once_and_goes_on(tmp_path) -> None:
    root = published(tmp_path, "mnli")
    (root / "MNLI" / "dev_mismatched.tsv").unlink()
    with pytest.warns(UserWarning, match="no dev_mismatched.tsv; only the matched") as caught:
        splits = make("mnli", root).read()
    assert list(splits) == ["train", "validation"]
    assert len(caught) == 1


def test_mnli_gold_label_is_found_behind_five_annotators(tmp_path) -> None:
    root = published(tmp_path, "mnli")
    annotators = [f"label{k}" for k in range(1, 6)]
    lines = [
        [*MNLI, *annotators, "gold_label"],
        [*FILL, "a", "b", *["-"] * 5, "entailment"],
        [*FILL, "c", "d", *["neutral"] * 5, "-"],
    ]
    write(root / "MNLI" / "dev_matched.tsv", lines)
    with pytest.warns(UserWarning, match=r"dev_matched.tsv: left out 1 row"):
        split = make("mnli", root).read()["validation"]
    assert rows(split) == [("a", "b", 0)]


@pytest.mark.parametrize("score", ["5.001", "-0.1", "nan", "inf", "high", ""])
def test_scores_outside_the_range_are_named(tmp_path, score) -> None:
    root = published(tmp_path, "stsb")
    lines = [*PUBLISHED["stsb"][1], [*"0123456", "a", "b", score]]
    write(root / "STS-B" / "train.tsv", lines)
    with pytest.raises(ValueError, match=rf"train\.tsv, line 3: score '{score}' .* 0 to 5"):
        make("stsb", root).read()


def test_a_label_outside_the_set_is_named(tmp_path) -> None:
    root = published(tmp_path, "rte")
    lines = [PUBLISHED["rte"][1][0], ["0", "a", "b", "neutral"]]
    write(root / "RTE" / "dev.tsv", lines)
    message = r"dev\.tsv, line 2: label 'neutral' is not one of entailment, not_entailment"
    with pytest.raises(ValueError, match=message):
        make("rte", root).read()


def test_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no task 'sst'; choose from cola, sst2, mrpc, stsb, qqp"):
        make("sst", None)


def test_a_missing_folder_names_the_ways_out(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--data\.data_dir.*lightning-kd assets"):
        make("sst2", tmp_path / "nowhere").read()


@pytest.mark.parametrize("name", ["train", "dev"])
def test_a_missing_file_is_named(tmp_path, name) -> None:
    root = published(tmp_path, "sst2")
    (root / "SST-2" / f"{name}.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=rf"SST-2 has no {name}\.tsv"):
        make("sst2", root).read()


def test_without_dev_file_a_holdout_is_enough(tmp_path) -> None:
    root = published(tmp_path, "sst2")
    (root / "SST-2" / "dev.tsv").unlink()
    assert list(make("sst2", root, holdout_fraction=0.5).read()) == ["train"]


def test_a_training_file_without_labels_is_an_error(tmp_path) -> None:
    root = published(tmp_path, "sst2")
    write(root / "SST-2" / "train.tsv", [["index", "sentence"], ["0", "a"]])
    with pytest.raises(ValueError, match=r"train\.tsv, line 1: there is no column 'label'"):
        make("sst2", root).read()


def hub_copy(root: Path, task: str, splits: dict[str, dict[str, list[Any]]], names: Any) -> str:
    """A local folder that `load_dataset` takes for the Hub's repository."""
    from datasets import ClassLabel, Dataset, Features, Value

    files = []
    for split, columns in splits.items():
        text = {name: Value("string") for name in columns if name != "label"}
        kind = Value("float32") if names is None else ClassLabel(names=names)
        path = root / task / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns, features=Features({**text, "label": kind})).to_parquet(path)
        files.append({"split": split, "path": f"{task}/{split}.parquet"})
    configs = json.dumps([{"config_name": task, "data_files": files}])  # JSON is YAML
    (root / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
    return str(root)


def test_the_hub_is_read_with_secret_test_labels_left_out(tmp_path, monkeypatch) -> None:
    texts: dict[str, list[Any]] = {"premise": ["a", "c"], "hypothesis": ["b", "d"]}
    labelled, secret = {**texts, "label": [2, 0]}, {**texts, "label": [-1, -1]}
    splits = {
        "train": labelled,
        "test_mismatched": secret,
        "test_matched": secret,
        "validation_mismatched": labelled,
        "validation_matched": labelled,
    }
    names = ["entailment", "neutral", "contradiction"]
    monkeypatch.setattr(GLUE, "hub_dataset", hub_copy(tmp_path, "mnli", splits, names))
    found = make("mnli", None).read()
    evaluated = ["validation", "validation_mismatched", "test", "test_mismatched"]
    assert list(found) == ["train", *evaluated]
    assert rows(found["validation"]) == [("a", "b", 2), ("c", "d", 0)]
    assert found["test"].column_names == ["idx", "sentence1", "sentence2"]


def test_hub_labels_in_another_order_are_refused(tmp_path, monkeypatch) -> None:
    splits: dict[str, dict[str, list[Any]]] = {"train": {"sentence": ["a"], "label": [0]}}
    copy = hub_copy(tmp_path, "sst2", splits, ["positive", "negative"])
    monkeypatch.setattr(GLUE, "hub_dataset", copy)
    with pytest.raises(ValueError, match="positive, negative; expected negative, positive"):
        make("sst2", None).read()


def test_hub_scores_outside_the_range_are_named(tmp_path, monkeypatch) -> None:
    columns: dict[str, list[Any]] = {"sentence1": ["a"], "sentence2": ["b"], "label": [5.5]}
    monkeypatch.setattr(GLUE, "hub_dataset", hub_copy(tmp_path, "stsb", {"train": columns}, None))
    with pytest.raises(ValueError, match=r"split train, example 0: label 5\.5 is not in 0\.\.5"):
        make("stsb", None).read()


def test_an_unreachable_hub_names_the_ways_out() -> None:
    with pytest.raises(ConnectionError, match=r"nyu-mll/glue.*--data\.data_dir.*lightning-kd ass"):
        make("sst2", None).read()


@pytest.mark.parametrize(
    ("task", "answers", "written"),
    [("sst2", [1, 0], "0\t0\n2\t1\n"), ("rte", [1, 0], "0\tentailment\n2\tnot_entailment\n")],
)
def test_submissions_are_sorted_and_carry_published_labels(
    tmp_path, task, answers, written
) -> None:
    path = tmp_path / "out.tsv"
    make(task, None).write_predictions(path, torch.tensor([2, 0]), torch.tensor(answers))
    assert path.read_text() == "index\tprediction\n" + written


def test_submitted_scores_are_clipped_and_have_three_decimals(tmp_path) -> None:
    path = tmp_path / "out.tsv"
    answers = torch.tensor([5.3, -0.2, 2.71828])
    make("stsb", None).write_predictions(path, torch.arange(3), answers)
    assert path.read_text() == "index\tprediction\n0\t5.000\n1\t0.000\n2\t2.718\n"


def test_submissions_are_named_as_the_server_wants() -> None:
    assert make("stsb", None).submissions == ["STS-B.tsv"]
    assert make("mnli", None).submissions == ["MNLI-m.tsv", "MNLI-mm.tsv"]
