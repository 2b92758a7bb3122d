"""Tokenized once; again whenever something that matters changed; the data have a hash."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from lightning_kd.data import encoding
from tests.data.conftest import Shout


def test_the_second_module_does_not_tokenize(make, no_tokenizing) -> None:
    make().prepare_data()
    no_tokenizing()
    make(batch_size=3, seed=5, group_by_length=True).setup("fit")


@pytest.mark.parametrize("options", [{"max_length": 5}, {"limit_examples": 5}], ids=str)
def test_whatever_changes_the_tokens_misses_the_cache(make, no_tokenizing, options) -> None:
    make().prepare_data()
    no_tokenizing()
    with pytest.raises(AssertionError, match="tokenized again"):
        make(**options).setup()


def test_changed_data_or_tokenizer_miss_the_cache(make, no_tokenizing, sst2_dir) -> None:
    make().prepare_data()
    no_tokenizing()
    data = make()
    data.tokenizer.add_tokens(["sharpest"])
    with pytest.raises(AssertionError, match="tokenized again"):
        data.setup()
    with (sst2_dir / "SST-2" / "train.tsv").open("a") as file:
        file.write("new\t0\n")
    with pytest.raises(AssertionError, match="tokenized again"):
        make().setup()


def test_an_interrupted_write_leaves_nothing(make, monkeypatch, tmp_path) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        make().setup()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_cache_is_where_xdg_says(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert encoding.default_cache_dir() == tmp_path / "lightning-kd"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert encoding.default_cache_dir() == Path.home() / ".cache" / "lightning-kd"


def test_data_hash_is_fixed_for_good() -> None:
    # a change here means that hashes in old reports no longer compare
    from datasets import Dataset

    split = Dataset.from_dict({"sentence1": ["café"], "idx": [0], "label": [1]})
    text = b'[["idx", "label", "sentence1"], [[0, 1, "caf\\u00e9"]]]'
    assert encoding.digest(split) == hashlib.sha256(text).hexdigest()


def test_data_hash_is_of_the_published_data_only(make, sst2_dir) -> None:
    def data_hash(**options: Any) -> str:
        data = make(**options)
        data.setup()
        return data.data_sha256

    before = data_hash()
    assert {
        data_hash(limit_examples=5),
        data_hash(seed=1, holdout_fraction=0.2),
        data_hash(max_length=7),
        data_hash(train_transforms=[Shout()]),
    } == {before}
    (sst2_dir / "SST-2" / "test.tsv").write_text("index\tsentence\n0\tgood\n")
    assert data_hash() != before
