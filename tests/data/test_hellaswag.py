"""HellaSwag as published: pairs of texts, padding, holdout, and what a broken file is told."""

import json
from typing import Any

import pytest
import torch

from lightning_kd.data import FlipLabels, HellaSwag
from tests import tiny


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tiny.hellaswag_folder(tmp_path_factory.mktemp("hellaswag"))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return str(tiny.tokenizer_folder(tmp_path_factory.mktemp("words")))


@pytest.fixture
def make(published, words, tmp_path):
    def build(**options: Any) -> HellaSwag:
        given = {"data_dir": str(published), "cache_dir": str(tmp_path / "cache"), "max_length": 16}
        return HellaSwag("hellaswag", words, **{**given, **options})

    return build


def lines(folder, name) -> list[dict[str, Any]]:
    text = (folder / f"hellaswag_{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def only_val(source, target):
    target.mkdir()
    (target / "hellaswag_val.jsonl").write_bytes((source / "hellaswag_val.jsonl").read_bytes())
    return target


def test_a_row_has_the_tokens_of_every_pair_and_padding_after_them(make, published) -> None:
    data = make(batch_size=3)
    batch = data.val_dataloader()[0]
    examples, tokenizer, seen = lines(published, "val"), data.tokenizer, 0
    for part in batch:
        assert part["input_ids"].shape[:2] == (len(part["idx"]), 4)
        assert part["attention_mask"].sum(-1).max() == part["input_ids"].shape[-1]
        for i, idx in enumerate(part["idx"].tolist()):
            row = examples[idx]
            assert part["labels"][i] == row["label"]
            for k, ending in enumerate(row["endings"]):
                pair = tokenizer(row["ctx_a"], f"{row['ctx_b']} {ending}".strip())
                size = len(pair["input_ids"])
                found = {n: part[n][i, k] for n in ("input_ids", "token_type_ids")}
                assert {n: v[:size].tolist() for n, v in found.items()} == {
                    n: pair[n] for n in found
                }
                assert not part["attention_mask"][i, k, size:].any()
                assert (found["input_ids"][size:] == tokenizer.pad_token_id).all()
                seen += 1
    assert seen == 8 * 4


def test_training_has_every_example_once_and_the_longer_text_is_cut(make) -> None:
    data = make(batch_size=5, max_length=8)
    batches = list(data.train_dataloader())
    assert sorted(i for batch in batches for i in batch["idx"].tolist()) == list(range(16))
    assert {batch["input_ids"].shape[-1] for batch in batches} == {8}
    # four words of context and three of ending share five places
    kept = torch.cat([batch["attention_mask"].sum(-1).flatten() for batch in batches])
    assert kept.max() == 8
    assert data.train_keys == 16


def test_predictions_are_a_line_for_each_example_of_the_test_file(make, tmp_path) -> None:
    data = make()
    loaders = data.predict_dataloader()
    assert data.eval_splits("predict") == ["test"]
    assert all("labels" not in batch for loader in loaders for batch in loader)
    assert not data.has_test
    data.write_predictions(tmp_path / "p.txt", torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0]))
    assert (tmp_path / "p.txt").read_text() == "1\n0\n3\n"


def test_a_folder_with_the_validation_file_alone_is_split_by_source(
    make, published, tmp_path
) -> None:
    folder = only_val(published, tmp_path / "alone")
    with pytest.raises(FileNotFoundError, match=r"no .*train\.jsonl; .*--data\.holdout_fraction"):
        make(data_dir=str(folder)).setup()
    data = make(data_dir=str(folder), holdout_fraction=0.5, seed=1)
    with pytest.warns(UserWarning, match=r"a part of hellaswag_val\.jsonl.*nothing published"):
        data.setup()
    parts = [data._roles[role][name].column("idx") for role, name in (
        ("train", "train"), ("validate", "validation"))]  # fmt: skip
    assert sorted([*parts[0], *parts[1]]) == list(range(8))
    sources = [{lines(folder, "val")[i]["source_id"] for i in part} for part in parts]
    assert sources[0]
    assert sources[1]
    assert not sources[0] & sources[1]
    assert not data.has_test
    assert len(data._splits("predict")["validation"]) == len(parts[1])


def test_with_a_holdout_the_published_validation_set_is_the_test_set(make) -> None:
    data = make(holdout_fraction=0.5)
    assert data.has_test
    assert len(data._splits("test")["test"]) == 8


def test_label_noise_moves_places(make) -> None:
    data = make(train_transforms=[FlipLabels(1.0, kind="uniform")])
    clean = make()
    flipped, published = (d._splits("train")["train"].column("labels") for d in (data, clean))
    changed = flipped != published
    assert changed.any()
    assert set(flipped.tolist()) <= {0, 1, 2, 3}
    assert data.notes["labels_changed"] == changed.sum()


def test_hub_columns_give_the_same_examples_as_the_files(make, published, monkeypatch) -> None:
    from datasets import Dataset

    names = {"train": "train", "validation": "val", "test": "test"}
    hub = {
        split: Dataset.from_list(
            [{**row, "label": str(row.get("label", ""))} for row in lines(published, name)]
        )
        for split, name in names.items()
    }
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        return hub

    monkeypatch.setattr("datasets.load_dataset", load)
    remote, local = make(data_dir=None), make()
    remote.setup()
    local.setup()
    assert asked == ["Rowan/hellaswag"]
    assert remote.data_sha256 == local.data_sha256


def test_an_unreachable_hub_names_the_way_out(make) -> None:
    with pytest.raises(ConnectionError, match=r"'Rowan/hellaswag'.*--data\.data_dir"):
        make(data_dir=None).setup()


BROKEN = [
    ({"label": 4}, r"label 4 is not in 0\.\.3"),
    ({"label": "1"}, r"label '1' is not in 0\.\.3"),
    ({"label": True}, r"label True is not in 0\.\.3"),
    ({"endings": ["a", "b", "c"]}, r"endings must be 4 texts, got 3, \['a', 'b', 'c'\]"),
    ({"endings": ["a", "b", "c", " "]}, "endings must be 4 texts, got 4"),
    ({"endings": "abcd"}, "endings must be 4 texts, got 'abcd'"),
    ({"ctx_a": None}, "'ctx_a' is no text but None"),
    ({"ctx_b": ...}, "there is no 'ctx_b'"),
    ({"label": ...}, "some examples of the file have a label, others none"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_defect_is_told_with_file_and_line(change, message, make, published, tmp_path) -> None:
    rows = lines(published, "val")
    changed = {k: v for k, v in {**rows[2], **change}.items() if v is not ...}
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("train", "test"):
        file = f"hellaswag_{name}.jsonl"
        (folder / file).write_bytes((published / file).read_bytes())
    texts = [json.dumps(row) for row in (*rows[:2], changed, *rows[3:])]
    (folder / "hellaswag_val.jsonl").write_text("\n".join(texts))
    with pytest.raises(ValueError, match=rf"hellaswag_val\.jsonl, line 3: {message}"):
        make(data_dir=str(folder)).setup()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"val\.jsonl is empty"),
        ('{"ctx_a": "cut', r"val\.jsonl, line 1: not JSON .*download the file again"),
        ("[1]", r"val\.jsonl, line 1: expected an object, got \[1\]"),
    ],
)
def test_a_file_of_something_else_is_told(content, message, make, published, tmp_path) -> None:
    folder = only_val(published, tmp_path / "broken")
    (folder / "hellaswag_val.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        make(data_dir=str(folder), holdout_fraction=0.5).setup()


def test_validation_without_labels_is_no_validation(make, published, tmp_path) -> None:
    folder = only_val(published, tmp_path / "secret")
    (folder / "hellaswag_val.jsonl").write_bytes((published / "hellaswag_test.jsonl").read_bytes())
    with pytest.raises(ValueError, match=r"val\.jsonl, line 1: there is no 'label'"):
        make(data_dir=str(folder), holdout_fraction=0.5).setup()
