"""HellaSwag (Zellers et al., 2019): which of four endings goes on with a description."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_kd.data.choices import ChoicePadding, tokenize_choices
from lightning_kd.data.text import TextDataModule
from lightning_kd.tasks import MultipleChoice, Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["HellaSwag"]

_FILES = {
    "train": "hellaswag_train.jsonl",
    "validation": "hellaswag_val.jsonl",
    "test": "hellaswag_test.jsonl",
}
_HUB = "Rowan/hellaswag"
_CHOICES = 4
_TEXTS = ("ctx_a", "ctx_b", "source_id")


class HellaSwag(TextDataModule):
    """Four endings to a context, of which people wrote one and a language model the others.

    Without `data_dir` the examples come from the Hugging Face Hub, with it from the published
    `hellaswag_train.jsonl`, `hellaswag_val.jsonl` and (without labels) `hellaswag_test.jsonl`.

    An input is a pair of texts: the sentences that are over (`ctx_a`), and the one that begins
    (`ctx_b`, empty in the WikiHow half) with an ending. The texts are taken as published, with
    WikiHow's marks such as `[step]`. Transforms see `ctx_a` as `sentence1`, the four second texts
    as `sentence2` (a list), and the place of the right one as `label`.

    A holdout keeps all examples of a video or article together. With a `holdout_fraction`, a folder
    that has the validation file alone can be tried: it is then split into both parts, and there is
    no test set. Such figures compare with nothing that is published.

    Arguments are those of `TextDataModule`; the only task is `hellaswag`.
    """

    benchmark = "hellaswag"
    tasks: ClassVar[Mapping[str, Task]] = {"hellaswag": MultipleChoice("hellaswag", _CHOICES)}

    @property
    def submissions(self) -> list[str]:
        """Of the test set, or of the validation set where there is none."""
        return ["predictions.txt"]

    def read(self) -> "dict[str, Dataset]":
        """The published splits, from `data_dir` or the Hub."""
        if self.data_dir is None:
            return self._read_hub()
        found = {split: self.data_dir / name for split, name in _FILES.items()}
        paths = {split: path for split, path in found.items() if path.is_file()}
        if "validation" not in paths or ("train" not in paths and not self.holdout_fraction):
            missing = found["train" if "validation" in paths else "validation"]
            raise FileNotFoundError(
                f"there is no {missing}; point --data.data_dir at the published HellaSwag files, "
                "or split the validation file by --data.holdout_fraction 0.2"
            )
        splits = {split: _dataset(_read_jsonl(path)) for split, path in paths.items()}
        for split in ("train", "validation"):
            if split in splits and "label" not in splits[split].column_names:
                raise ValueError(f"{paths[split]}, line 1: there is no 'label'")
        if "train" not in splits:
            rank_zero_warn(
                f"there is no {found['train']}: training on a part of {paths['validation'].name}, "
                "validating on the rest; such figures compare with nothing published"
            )
            return {"train": splits["validation"]}
        return splits

    def write_predictions(self, path: Path, idx: Tensor, answers: Tensor) -> None:
        """Write the place of the chosen ending, 0 to 3, a line for each example of the file."""
        chosen = answers[idx.argsort()].long().tolist()
        path.write_text("".join(f"{answer}\n" for answer in chosen), encoding="utf-8")

    @property
    def _tokenizing(self) -> list[Any]:
        return ["choices", self.max_length]

    def _tokenize(self, examples: "Dataset") -> Any:
        return tokenize_choices(examples, self.tokenizer, self.max_length)

    @property
    @override
    def _collate(self) -> ChoicePadding:
        return ChoicePadding(self.tokenizer)

    def _held_together(self, train: "Dataset") -> Iterable[tuple[str, ...]]:
        return [(source,) for source in train["source_id"]]

    def _read_hub(self) -> "dict[str, Dataset]":
        from datasets import load_dataset

        try:
            found = load_dataset(_HUB)
        except (OSError, ValueError) as error:  # ValueError: offline, and not cached
            raise ConnectionError(
                f"could not load {_HUB!r} from the Hugging Face Hub "
                f"({str(error).splitlines()[0]}); without it, point --data.data_dir at the "
                "published HellaSwag files"
            ) from error
        splits = {}
        for split in _FILES:
            rows = []
            for position, row in enumerate(found[split]):
                # there a label is a text, and empty where it is secret
                known = {} if row["label"] == "" else {"label": int(row["label"])}
                rest = {name: value for name, value in row.items() if name != "label"}
                rows.append(_example(f"{_HUB}, {split} example {position}", rest | known))
            splits[split] = _dataset(rows)
        return splits


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The examples of a file, in its order; a defect names file and line."""
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{where}: not JSON ({error}); download the file again") from None
        rows.append(_example(where, row))
        if ("label" in rows[0]) != ("label" in rows[-1]):
            raise ValueError(f"{where}: some examples of the file have a label, others none")
    if not rows:
        raise ValueError(f"{path} is empty; expected a JSON object in each line")
    return rows


def _example(where: str, row: Any) -> dict[str, Any]:
    """The columns that transforms see, when the published ones can be used."""
    _check(where, row)
    begun = row["ctx_b"].strip()
    seconds = [f"{begun} {ending}" if begun else ending for ending in row["endings"]]
    texts = {"sentence1": row["ctx_a"], "sentence2": seconds, "source_id": row["source_id"]}
    return {**texts, "label": row["label"]} if "label" in row else texts


def _check(where: str, row: Any) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object, got {row!r:.40}")  # noqa: TRY004 (a file's)
    for name in (*_TEXTS, "endings"):
        if name not in row:
            raise ValueError(f"{where}: there is no {name!r}")
    for name in _TEXTS:
        if not isinstance(row[name], str):
            raise ValueError(f"{where}: {name!r} is no text but {row[name]!r:.40}")  # noqa: TRY004
    endings = row["endings"]
    texts = isinstance(endings, list) and all(isinstance(x, str) and x.strip() for x in endings)
    if not texts or len(endings) != _CHOICES:
        count = f"{len(endings)}, " if isinstance(endings, list) else ""
        raise ValueError(f"{where}: endings must be {_CHOICES} texts, got {count}{endings!r:.60}")
    label = row.get("label", 0)
    if type(label) is not int or not 0 <= label < _CHOICES:
        raise ValueError(f"{where}: label {label!r} is not in 0..{_CHOICES - 1}")


def _dataset(rows: list[dict[str, Any]]) -> "Dataset":
    from datasets import Dataset

    numbered = {"idx": list(range(len(rows)))}
    return Dataset.from_dict(numbered | {name: [row[name] for row in rows] for name in rows[0]})
