"""Splits, batches and transforms of a data module, on tiny published files."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from lightning_kd.data import GLUE
from tests.data.conftest import Shout, sentence, write


def sentences(data: GLUE, batches: Iterable[dict[str, torch.Tensor]]) -> dict[int, str]:
    """Text by idx."""
    return {
        int(idx): data.tokenizer.decode(ids, skip_special_tokens=True)
        for batch in batches
        for idx, ids in zip(batch["idx"], batch["input_ids"], strict=True)
    }


def test_batches_are_what_the_tokenizer_says_padded_to_the_longest(make) -> None:
    data = make(batch_size=7, max_length=9)
    for batch in data.train_dataloader():
        texts = [sentence(int(i)) for i in batch["idx"]]
        reference = data.tokenizer(
            texts, truncation=True, max_length=9, padding="longest", return_tensors="pt"
        )
        assert set(batch) == {*reference, "labels", "idx"}
        for name, value in reference.items():
            assert torch.equal(batch[name], value), name
        assert torch.equal(batch["labels"], batch["idx"] % 2)
        assert {value.dtype for value in batch.values()} == {torch.int64}


def test_the_fixed_length_in_a_tokenizer_file_is_not_obeyed(make) -> None:
    data = make()
    assert data.tokenizer.backend_tokenizer.padding["length"] == 8
    lengths = {int(n) for batch in data.val_dataloader()[0] for n in batch["attention_mask"].sum(1)}
    assert min(lengths) < 8 < max(lengths)


@pytest.mark.parametrize(
    "options",
    [{}, {"limit_examples": 20}, {"holdout_fraction": 0.3}, {"group_by_length": True}, {"seed": 3}],
    ids=str,
)
def test_idx_is_the_position_in_the_published_file(make, options) -> None:
    data = make(batch_size=4, **options)
    train = sentences(data, data.train_dataloader())
    assert train == {i: sentence(i) for i in train}
    predicted = sentences(data, data.predict_dataloader()[0])
    assert predicted == {i: sentence(1000 + i) for i in predicted}


def test_limit_takes_mixed_labels_by_seed_from_every_split(make) -> None:
    def chosen(seed: int) -> list[int]:
        data = make(limit_examples=10, seed=seed)
        batches = list(data.train_dataloader())
        assert 0 < int(batches[0]["labels"].sum()) < 10
        assert sum(len(batch["idx"]) for batch in data.val_dataloader()[0]) == 10
        return sorted(batches[0]["idx"].tolist())

    assert len(chosen(0)) == 10
    assert chosen(0) == chosen(0) != chosen(1)
    assert chosen(0) != list(range(10))


def test_holdout_is_disjoint_and_makes_dev_the_test_set(make) -> None:
    data = make(holdout_fraction=0.3, batch_size=50)
    train = set(sentences(data, data.train_dataloader()))
    held = set(sentences(data, data.val_dataloader()[0]))
    tested = sentences(data, data.test_dataloader()[0])
    assert train | held == set(range(50))
    assert not train & held
    assert 5 <= len(held) <= 25
    assert tested == {i: sentence(1000 + i) for i in range(11)}
    assert data.eval_splits("validate") == ["validation"]
    assert data.eval_splits("test") == ["test"]


def test_holdout_does_not_depend_on_the_order_of_the_file(make, sst2_dir) -> None:
    data = make(holdout_fraction=0.3)
    before = set(sentences(data, data.val_dataloader()[0]).values())
    path = sst2_dir / "SST-2" / "train.tsv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(lines)]) + "\n")
    data = make(holdout_fraction=0.3)
    assert set(sentences(data, data.val_dataloader()[0]).values()) == before
    data = make(holdout_fraction=0.3, seed=1)
    assert set(sentences(data, data.val_dataloader()[0]).values()) != before


def test_equal_texts_are_on_the_same_side_of_a_holdout(make, sst2_dir) -> None:
    lines = [[sentence(i % 10), str(i % 2)] for i in range(40)]
    write(sst2_dir / "SST-2" / "train.tsv", [["sentence", "label"], *lines])
    data = make(holdout_fraction=0.5)
    train = set(sentences(data, data.train_dataloader()).values())
    assert not train & set(sentences(data, data.val_dataloader()[0]).values())


def test_a_holdout_that_leaves_nothing_is_an_error(make) -> None:
    with pytest.raises(ValueError, match=r"holdout_fraction=1e-09 leaves 50 of 50 .* 0 for valid"):
        make(holdout_fraction=1e-9).setup()


def test_without_public_test_labels_the_ways_out_are_named(make) -> None:
    data = make()
    assert not data.has_test
    assert data.eval_splits("test") == []
    with pytest.raises(ValueError, match=r"not public.*validate.*predict.*holdout.*test\.tsv"):
        data.test_dataloader()


def test_a_labelled_test_file_is_tested_and_predicted(make, sst2_dir) -> None:
    write(sst2_dir / "SST-2" / "test.tsv", [["sentence", "label"], ["good film", "1"]])
    data = make()
    assert data.has_test
    assert data.eval_splits("predict") == ["test"]
    assert next(iter(data.test_dataloader()[0]))["labels"].tolist() == [1]


def test_an_unlabelled_test_file_is_predicted_only(make, sst2_dir) -> None:
    write(sst2_dir / "SST-2" / "test.tsv", [["index", "sentence"], ["0", "good film"]])
    data = make()
    assert not data.has_test
    batch = next(iter(data.predict_dataloader()[0]))
    assert "labels" not in batch
    assert batch["idx"].tolist() == [0]


def test_transforms_change_the_training_set_alone(make) -> None:
    data = make(train_transforms=[Shout("film"), Shout("bad")], holdout_fraction=0.2)
    train = sentences(data, data.train_dataloader())
    assert train == {i: f"{sentence(i)} film bad" for i in train}
    held = sentences(data, data.val_dataloader()[0])
    assert held == {i: sentence(i) for i in held}


def test_a_transform_is_known_by_its_fingerprint(make, no_tokenizing) -> None:
    make(train_transforms=[Shout("film")]).setup()
    no_tokenizing()
    Shout.calls = 0
    make(train_transforms=[Shout("film")]).setup()
    assert Shout.calls == 0
    with pytest.raises(AssertionError, match="tokenized again"):
        make(train_transforms=[Shout("bad")]).setup()


def test_training_order_depends_on_the_seed(make) -> None:
    def order(seed: int) -> list[list[int]]:
        return [batch["idx"].tolist() for batch in make(seed=seed).train_dataloader()]

    assert order(0) == order(0) != order(1)


def test_batch_sizes_are_obeyed(make) -> None:
    data = make(batch_size=7, eval_batch_size=3)
    assert [len(b["idx"]) for b in data.train_dataloader()] == [7] * 7 + [1]
    assert {len(b["idx"]) for b in data.val_dataloader()[0]} == {2, 3}
    assert [len(b["idx"]) for b in data.predict_dataloader()[0]] == [3, 3, 3, 2]
    assert len(make(batch_size=7).predict_dataloader()[0]) == 2


def test_processes_share_the_examples_of_the_attached_trainer(make) -> None:
    def part(rank: int, loader: str) -> list[list[int]]:
        data = make(batch_size=4)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        made = getattr(data, loader)()
        made = made[0] if isinstance(made, list) else made
        return [batch["idx"].tolist() for batch in made]

    for loader in ("train_dataloader", "val_dataloader"):
        left, right = part(0, loader), part(1, loader)
        assert len(left) == len(right)
        count = 50 if loader.startswith("train") else 11
        assert sorted(i for batch in left + right for i in batch) == list(range(count))


def test_grouping_by_length_has_an_effect(make) -> None:
    def padding(**options: Any) -> int:
        batches = make(batch_size=5, **options).train_dataloader()
        return sum(int((1 - batch["attention_mask"]).sum()) for batch in batches)

    assert padding(group_by_length=True) < 0.5 * padding()


def test_the_trainer_predicts_every_example_without_complaint(make) -> None:
    class Echo(L.LightningModule):
        def predict_step(self, batch: Any) -> Any:
            return batch["idx"]

    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    seen = trainer.predict(Echo(), datamodule=make(batch_size=4))
    assert seen is not None
    assert sorted(int(i) for batch in seen for i in batch) == list(range(11))


@pytest.mark.slow
def test_loader_workers_change_nothing(make) -> None:
    plain, workers = make(batch_size=8), make(batch_size=8, num_workers=2)
    for one, two in zip(plain.train_dataloader(), workers.train_dataloader(), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"limit_examples": 0}, "limit_examples must be at least 1, got 0"),
        ({"holdout_fraction": 1.0}, r"holdout_fraction must be in \[0, 1\), got 1\.0"),
    ],
    ids=str,
)
def test_values_out_of_range_are_named(make, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_more_tokens_than_the_model_takes_is_an_error(make) -> None:
    with pytest.raises(ValueError, match=r"max_length must be at most the 128 tokens .* got 129"):
        make(max_length=129).setup()


def test_an_unreachable_tokenizer_names_the_way_out(make, sst2_dir) -> None:
    with pytest.raises(OSError, match=r"tokenizer 'no/such'.*lightning-kd assets"):
        GLUE("sst2", "no/such", data_dir=str(sst2_dir)).setup()


def test_without_padding_token_the_end_token_pads(make, tokenizer_dir, tmp_path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "bare")
    data = make()
    data.tokenizer_name = str(tmp_path / "bare")
    with pytest.raises(ValueError, match="neither a padding nor an end token"):
        data.setup()
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.save_pretrained(tmp_path / "gpt")
    data.tokenizer_name = str(tmp_path / "gpt")
    batch = next(iter(data.train_dataloader()))
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {3}


def test_padding_goes_to_the_tokenizers_side(make) -> None:
    data = make()
    data.tokenizer.padding_side = "left"
    batch = next(iter(data.train_dataloader()))
    assert batch["attention_mask"][:, -1].all()
    assert not batch["attention_mask"][:, 0].all()
    assert (batch["input_ids"] != 0).eq(batch["attention_mask"].bool()).all()
