"""Benchmarks of texts as data modules: splits, what is written, packing, and what is refused."""

import json

import numpy as np
import pytest
import torch

from lightning_kd.data import Instructions
from lightning_kd.data.generation import _whole_batches, first_of_groups
from lightning_kd.data.packing import Packed
from lightning_kd.tasks import Prediction
from tests import tiny_texts


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generation")
    rows = tiny_texts.alpaca_rows(40)
    tiny_texts.write_json(folder / "alpaca" / "alpaca_data.json", rows)
    for name, part in (("train", rows[:20]), ("dev", rows[20:32]), ("test", rows[32:])):
        tiny_texts.write_json(folder / "reviews" / f"{name}.json", part)
    tiny_texts.byte_tokenizer(folder / "bytes")
    tiny_texts.byte_tokenizer(folder / "chat", chat=True, bos=True)
    return folder


@pytest.fixture
def make(folders, tmp_path):
    def build(task="reviews", tokenizer="bytes", **options) -> Instructions:
        given = {"data_dir": str(folders / task), "cache_dir": str(tmp_path / "cache")}
        given |= {"prompt_template": "{instruction}{input}\n"}
        more = {"max_length": 128, **given, **options}
        return Instructions(task, str(folders / tokenizer), **more)

    return build


def batches(data):
    return list(data.train_dataloader())


def test_an_epoch_has_every_example_with_its_targets_counted(make) -> None:
    for options in ({}, {"mask_prompt": False}, {"packing": True},
                    {"packing": True, "mask_prompt": False}):  # fmt: skip
        data = make(batch_size=3, **options)
        found = batches(data)
        count = len(data._splits("train")["train"])
        assert sorted(i for b in found for i in b["idx"].tolist()) == list(range(count))
        for batch in found:
            targets = int((batch["labels"][:, 1:] != -100).sum())
            assert batch["num_targets"].item() == targets  # of a step of one batch


def test_packing_keeps_the_targets_and_saves_rows(make) -> None:
    apart, packed = make(batch_size=4), make(batch_size=4, packing=True)
    totals = [sum(b["num_targets"].item() for b in batches(data)) for data in (apart, packed)]
    assert totals[0] == totals[1]
    split = packed._splits("train")["train"]
    assert isinstance(split, Packed)
    assert len(split) < len(apart._splits("train")["train"])
    assert max(split.lengths) <= 128
    assert packed.train_keys == len(split)
    assert packed.train_identity != apart.train_identity
    evaluated = packed.val_dataloader()[0]
    assert all("attention_mask" in b and len(b["prompt_lengths"]) == len(b["idx"])
               for b in evaluated)  # fmt: skip


def test_packed_rows_are_the_same_whatever_the_seed_and_only_their_order_is_drawn(make) -> None:
    one, other = (make(batch_size=2, packing=True, seed=seed) for seed in (0, 1))
    rows = [data._splits("train")["train"].bins for data in (one, other)]
    assert rows[0] == rows[1]
    orders = [[b["idx"].tolist() for b in batches(data)] for data in (one, other, one)]
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


def test_packed_training_continues_where_it_stopped(make) -> None:
    loader = make(batch_size=1, packing=True).train_dataloader()
    whole = [b["input_ids"] for b in loader]
    assert len(whole) > 3
    again = make(batch_size=1, packing=True).train_dataloader()
    again.load_state_dict({"epoch": 0, "batch": 2})
    rest = [b["input_ids"] for b in again]
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[2:], strict=True))


def test_rows_of_similar_length_share_a_batch(make) -> None:
    spread = {}
    for group in (False, True):
        found = batches(make(batch_size=5, group_by_length=True) if group else make(batch_size=5))
        spread[group] = sum(int((b["attention_mask"] == 0).sum()) for b in found)
    assert spread[True] < spread[False]


def test_texts_are_asked_for_of_whole_batches_spread_over_all_lengths() -> None:
    lengths = [5, 1, 9, 3, 7, 2, 8, 4, 6, 10]
    order = np.argsort(lengths)
    assert _whole_batches(lengths, 2, 4).nonzero()[0].tolist() == sorted([*order[:2], *order[4:6]])
    assert _whole_batches(lengths, 4, 10).all()
    assert not _whole_batches(lengths, 4, 0).any()
    for count in range(11):
        for size in (1, 3, 4, 20):
            assert _whole_batches(lengths, size, count).sum() == count


@pytest.mark.parametrize("count", [0, 5, 100])
def test_so_many_texts_are_asked_for_and_all_of_the_predict_stage(make, count) -> None:
    data = make(eval_batch_size=4, generate_examples=count)
    asked = torch.cat([b["generate"] for b in data.val_dataloader()[0]])
    assert asked.sum() == min(count, 12)
    (predict,) = data.predict_dataloader()
    assert all(b["generate"].all() for b in predict)


def test_predictions_have_number_prompt_and_text(make, tmp_path) -> None:
    data = make(eval_batch_size=8)
    (loader,) = data.predict_dataloader()
    (batch,) = list(loader)
    words = ["é" * k + "\n" for k in range(8)]
    written = torch.full((8, data.spec.max_new_tokens), -1)
    for k, word in enumerate(words):
        tokens = data.tokenizer(word).input_ids
        written[k, : len(tokens)] = torch.tensor(tokens)
    targets = int((batch["labels"][:, 1:] != -100).sum(1).max())
    prediction = Prediction(torch.zeros(8, targets, tiny_texts.BYTES), generated=written)
    records = data.answer_key("predict", 0).record(prediction, batch)
    data.write_predictions(tmp_path / "p.jsonl", batch["idx"], records)
    lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["idx"] for row in found] == list(range(8))
    assert found[1]["prompt"] == "Say the number 33.\n\n### Input:\nin words 33\n"
    assert {row["idx"]: row["text"] for row in found} == {
        i: words[k].strip() for k, i in enumerate(batch["idx"].tolist())
    }
    assert data.submissions == ["predictions.jsonl"]


def test_a_chat_template_is_used_where_there_is_one_and_wanted(make) -> None:
    starts = {}
    for tokenizer in ("chat", "bytes"):
        for wanted in ("auto", "never"):
            data = make(tokenizer=tokenizer, chat_template=wanted)
            data.setup()
            row = data._splits("train")["train"][1]
            starts[tokenizer, wanted] = data.tokenizer.decode(row["input_ids"].tolist())
    plain = "Say the number 1.\nIt is one 1.</s>"
    assert starts == {
        ("chat", "auto"): "<s><|user|>Say the number 1.</s><|assistant|>It is one 1.</s>",
        ("chat", "never"): f"<s>{plain}",
        ("bytes", "auto"): plain,
        ("bytes", "never"): plain,
    }


def test_a_cache_file_is_of_one_way_to_tokenize(make) -> None:
    for options in ({}, {"chat_template": "never"}, {"max_length": 64}, {"packing": True},
                    {"mask_prompt": False}):  # fmt: skip
        make(tokenizer="chat", **options).setup()
    files = list((make().cache_dir / "instructions").iterdir())
    assert len(files) == 3 * 3  # packing and masking come after the cache


def test_a_tokenizer_without_padding_token_pads_with_its_end(folders, make, tmp_path) -> None:
    tiny_texts.byte_tokenizer(tmp_path / "bare", pad=False)
    data = make(tokenizer=str(tmp_path / "bare"), batch_size=20)
    (batch,) = batches(data)
    assert data.tokenizer.pad_token_id == data.tokenizer.eos_token_id
    ends = (batch["labels"] == data.tokenizer.eos_token_id).sum(1)
    assert ends.tolist() == [1] * 20


def test_a_holdout_and_a_validation_file_alone(make) -> None:
    data = make("alpaca", holdout_fraction=0.3)
    kept, held = (data._splits(role)[name].column("idx") for role, name in (
        ("train", "train"), ("validate", "validation")))  # fmt: skip
    assert sorted([*kept, *held]) == list(range(40))
    with pytest.raises(ValueError, match=r"alpaca has no published split.*holdout_fraction"):
        make("alpaca").setup()


def test_the_first_of_each_group_is_kept() -> None:
    from datasets import Dataset

    groups = ["b", "a", "b", "c", "a"]
    rows = Dataset.from_dict({"idx": list(range(5)), "group": groups})
    assert first_of_groups(rows)["idx"][:] == [0, 1, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "max_length must be at least 2, got 1"),
        ({"chat_template": "always"}, "chat_template must be auto or never, got 'always'"),
        ({"generate_examples": -1}, "generate_examples must be at least 0, got -1"),
        (
            {"prompt_template": "{input}"},
            r"prompt_template has no \{instruction\}.*got '\{input\}'",
        ),
    ],
)
def test_settings_that_make_no_sense(make, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_missing_packages_are_told_before_training(make, monkeypatch) -> None:
    monkeypatch.setattr("lightning_kd.metrics.find_spec", lambda _: None)
    with pytest.raises(ImportError, match="rouge-score"):
        make()
    make(generate_examples=0)
