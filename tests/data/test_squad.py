"""SQuAD as a data module: splits, cache, holdout, and answers back in words."""

import json
from typing import Any

import pytest
import torch

from lightning_kd.data import SQuAD
from lightning_kd.data.transform import Transform
from lightning_kd.tasks import Prediction
from tests import tiny

SIZES: dict[str, Any] = {"max_length": 16, "doc_stride": 4, "max_question_length": 4}


@pytest.fixture(scope="module")
def squad_dir(tmp_path_factory):
    return tiny.squad_folder(tmp_path_factory.mktemp("squad"))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return str(tiny.tokenizer_folder(tmp_path_factory.mktemp("words")))


@pytest.fixture
def make(squad_dir, words, tmp_path):
    def build(task="squad", **options) -> SQuAD:
        given = {"data_dir": str(squad_dir), "cache_dir": str(tmp_path / "cache"), **SIZES}
        return SQuAD(task, words, **{**given, **options})

    return build


def told(data, stage="validate"):
    """``idx`` and records of a model that is certain of the labels of every window."""
    key = data.answer_key(stage, 0)
    loaders = {"validate": data.val_dataloader, "test": data.test_dataloader,
               "predict": data.predict_dataloader}  # fmt: skip
    found = []
    for batch in loaders[stage]()[0]:
        logits = torch.zeros(len(batch["idx"]), 2, batch["input_ids"].shape[1])
        # a window with the answer is surer than one that says "not here"
        sure = torch.where(batch["labels"] > 0, 9.0, 5.0)
        logits.scatter_(2, batch["labels"][..., None], sure[..., None])
        found.append((batch["idx"], key.record(Prediction(logits), batch)))
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


def test_batches_have_windows_labels_and_the_mask(make) -> None:
    data = make(batch_size=8)
    batches = list(data.train_dataloader())
    assert set(batches[0]) == {
        "input_ids", "token_type_ids", "attention_mask", "answer_mask", "labels", "idx",
    }  # fmt: skip
    idx = torch.cat([batch["idx"] for batch in batches])
    assert sorted(idx.tolist()) == list(range(len(idx)))
    assert len(idx) > 24  # six articles of four questions: some passages take several windows
    for batch in batches:
        mask = batch["answer_mask"]
        assert mask.dtype == torch.bool
        assert mask[:, 0].all()
        assert not mask[:, 1].any()  # the question
        assert not (mask & (batch["attention_mask"] == 0)).any()
        assert mask.gather(1, batch["labels"]).all()
        assert (batch["input_ids"].shape[1]) <= 16


@pytest.mark.parametrize("task", SQuAD.tasks)
def test_a_model_that_knows_every_window_answers_every_question(make, task) -> None:
    data = make(task)
    data.setup()
    scores = data.answer_key("validate", 0).score(*told(data))
    assert list(scores) == list(data.spec.metric_names)
    assert len(scores["f1"]) == 12
    for name, values in scores.items():
        assert values.nanmean() == 1, name
    if task == "squad_v2":
        assert int(scores["no_answer_f1"].isfinite().sum()) == 6


def test_predictions_are_what_the_official_scripts_read(make, squad_dir, tmp_path) -> None:
    data = make("squad_v2", n_best=3)
    data.setup()
    idx, records = told(data, "predict")
    order = torch.randperm(len(idx))
    (name,) = data.submissions
    data.write_predictions(tmp_path / name, idx[order], records[order])
    written = json.loads((tmp_path / name).read_text())
    dev = json.loads((squad_dir / "dev-v2.0.json").read_text())["data"]
    entries = [e for a in dev for p in a["paragraphs"] for e in p["qas"]]
    truths = {e["id"]: e["answers"][0]["text"] if e["answers"] else "" for e in entries}
    assert written == truths
    best = json.loads((tmp_path / "nbest_predictions.json").read_text())
    assert list(best) == list(written)
    for name, choices in best.items():
        assert len(choices) <= 3
        assert sum(choice["probability"] for choice in choices) == pytest.approx(1)
        assert choices[0]["text"] == written[name]
    odds = json.loads((tmp_path / "null_odds.json").read_text())
    assert {name: value > 0 for name, value in odds.items()} == {
        k: not v for k, v in truths.items()
    }


def test_squad_1_has_no_odds_of_no_answer(make, tmp_path) -> None:
    data = make()
    data.setup()
    data.write_predictions(tmp_path / "predictions.json", *told(data, "predict"))
    assert not (tmp_path / "null_odds.json").exists()
    assert all(json.loads((tmp_path / "predictions.json").read_text()).values())


def test_the_threshold_gives_more_or_fewer_answers(make) -> None:
    answered = {}
    for threshold in (-99.0, None, 99.0):
        data = make("squad_v2", no_answer_threshold=threshold)
        data.setup()
        found = data.answer_key("validate", 0).answers(*told(data))
        answered[threshold] = sum(bool(answer.text) for answer in found.values())
    assert answered == {-99.0: 0, None: 6, 99.0: 12}


def test_a_tuned_threshold_is_of_validation_reported_and_used_for_the_test(make) -> None:
    data = make("squad_v2", no_answer_threshold="tuned", holdout_fraction=0.5, seed=1)
    with pytest.raises(ValueError, match=r"not known before a validation; to test, give --data"):
        data.setup("test")
    data.setup()
    assert data.answer_key("test", 0).threshold == 0
    idx, records = told(data)
    records[:, 0, 2] += 50  # sure that there is no answer, by 50 too much
    scores = data.answer_key("validate", 0).score(idx, records)
    assert scores["f1"].mean() == 1
    threshold = data.notes["no_answer_threshold"]
    assert 30 < threshold < 60
    assert data.answer_key("test", 0).threshold == threshold
    data.setup("test")


def test_a_holdout_is_of_whole_articles_and_the_published_dev_set_the_test(make) -> None:
    data = make(holdout_fraction=0.5, seed=1)
    data.setup()
    published = data.read()
    parts = data._assign(published)
    titles = [set(parts[role][n]["title"]) for role, n in (("train", "train"),
                                                           ("validate", "validation"))]  # fmt: skip
    assert titles[0] | titles[1] == set(published["train"]["title"])
    assert not titles[0] & titles[1]
    assert data.has_test
    assert data.answer_key("test", 0).score(*told(data, "test"))["f1"].mean() == 1
    assert data.answer_key("validate", 0).questions["id"] == parts["validate"]["validation"]["id"]


def test_without_titles_a_passage_stays_together(make, monkeypatch) -> None:
    data = make(holdout_fraction=0.5)
    train = data.read()["train"]
    untitled = train.remove_columns("title").add_column("title", [""] * len(train))
    kept, held = data._hold_out(untitled)
    assert not set(kept["sentence2"]) & set(held["sentence2"])
    assert len(kept) + len(held) == len(train)


def test_a_limit_counts_questions(make) -> None:
    data = make(limit_examples=5)
    data.setup()
    assert len(data.answer_key("validate", 0).questions) == 5
    idx, records = told(data)
    assert len(idx) >= 5
    assert len(data.answer_key("validate", 0).score(idx, records)["f1"]) == 5


class Ask(Transform):
    """Puts a word before every training question."""

    def __call__(self, examples: Any) -> Any:
        texts = [f"w0 {text}" for text in examples["sentence1"]]
        return examples.remove_columns("sentence1").add_column("sentence1", texts)

    def fingerprint(self) -> str:
        return "Ask"


class Prefix(Transform):
    """Puts a word before every training passage, so that answers move."""

    def __call__(self, examples: Any) -> Any:
        texts = [f"w0 {text}" for text in examples["sentence2"]]
        return examples.remove_columns("sentence2").add_column("sentence2", texts)

    def fingerprint(self) -> str:
        return "Prefix"


def test_a_transform_changes_training_questions_only(make) -> None:
    changed, plain = make(train_transforms=[Ask()]), make()
    batch = next(iter(changed.train_dataloader()))
    assert (batch["input_ids"][:, 1] == 5).all()  # w0
    windows = len(changed._splits("train")["train"])
    assert changed.notes == {"train_transforms": ["Ask"], "train_examples": windows}
    assert torch.equal(*(next(iter(d.val_dataloader()[0]))["input_ids"] for d in (changed, plain)))


def test_a_transform_that_moves_answers_is_an_error(make) -> None:
    with pytest.raises(ValueError, match=r"question \d+-\d-\d: the answer '.*' is not at"):
        make(train_transforms=[Prefix()]).setup()


def test_it_tokenizes_once_and_again_for_other_windows(make, monkeypatch) -> None:
    make().setup()

    def refuse(*_: Any) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr("lightning_kd.data.squad.Windows", refuse)
    again = make(n_best=1, max_answer_length=2, batch_size=3)  # no part of what is kept
    again.setup()
    assert again.answer_key("validate", 0).score(*told(again))["f1"].mean() == 1
    for other in ({"doc_stride": 3}, {"max_length": 15}, {"max_question_length": 3}):
        with pytest.raises(AssertionError, match="tokenized again"):
            make(**other).setup()


def test_padding_is_on_the_right_whatever_the_tokenizer_says(words, make) -> None:
    data = make()
    data.tokenizer_name = words
    assert data.tokenizer.padding_side == "right"
    batch = next(iter(data.train_dataloader()))
    assert (batch["input_ids"][:, 0] == data.tokenizer.cls_token_id).all()


def test_hub_columns_give_the_same_windows_as_the_files(make, monkeypatch) -> None:
    from datasets import Dataset

    local = make()
    hub = {
        split: Dataset.from_list([
            {"id": row["id"], "title": row["title"], "question": row["sentence1"],
             "context": row["sentence2"], "answers": row["label"]}
            for row in rows
        ])
        for split, rows in local.read().items()
    }  # fmt: skip
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        return hub

    monkeypatch.setattr("datasets.load_dataset", load)
    remote = make(data_dir=None)
    remote.setup()
    local.setup()
    assert asked == ["rajpurkar/squad"]
    assert remote.data_sha256 == local.data_sha256


def test_an_unreachable_hub_names_the_way_out(make) -> None:
    with pytest.raises(ConnectionError, match=r"'rajpurkar/squad_v2'.*--data.data_dir"):
        make("squad_v2", data_dir=None).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "squad2"}, "SQuAD has no task 'squad2'; choose from squad, squad_v2"),
        ({"doc_stride": 0}, "doc_stride must be at least 1, got 0"),
        ({"n_best": 0}, "n_best must be at least 1, got 0"),
        ({"max_answer_length": 0}, "max_answer_length must be at least 1"),
        ({"max_question_length": 0}, "max_question_length must be at least 1"),
        ({"task": "squad_v2", "no_answer_threshold": "best"}, "a number or tuned, got 'best'"),
        ({"no_answer_threshold": 1.0}, r"no_answer_threshold=1.0 has no effect.*use squad_v2"),
    ],
)
def test_a_setting_that_cannot_be_is_an_error(make, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_missing_files_are_named(make, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*train-v1\.1\.json; point --data"):
        make(data_dir=str(tmp_path)).setup()


def test_there_is_no_test_set_without_a_holdout(make) -> None:
    data = make()
    assert not data.has_test
    with pytest.raises(ValueError, match=r"set --data\.holdout_fraction"):
        data.test_dataloader()


def test_a_teachers_answers_can_be_kept(make) -> None:
    data = make()
    assert data.train_keys == len(data._splits("train")["train"])
    assert data.train_width == 16
    assert set(data.train_identity) == {"text", "tokenizer", "max_length"}
