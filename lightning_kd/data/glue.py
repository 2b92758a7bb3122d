"""GLUE (Wang et al., 2018): nine tasks of language understanding, from the Hub or as published."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_kd.data.text import TextDataModule
from lightning_kd.data.tsv import TsvLayout, read_tsv
from lightning_kd.tasks import Classification, Regression, Task

if TYPE_CHECKING:
    from datasets import Dataset

_FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
_MNLI_FILES = {
    "train": "train.tsv",
    "validation": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
_NUMBERS = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class _Source:
    """Where a task's examples are, in both worlds.

    Args:
        folder: the task's folder in the published archive; also the name of a submission.
        layout: of the published files.
        hub_texts: text columns on the Hub.
        published: each class's label in published files and submissions; empty: a score.
    """

    folder: str
    layout: TsvLayout
    hub_texts: tuple[str, ...]
    published: tuple[str, ...] = _NUMBERS


_SOURCES: Mapping[str, _Source] = {
    "cola": _Source(
        "CoLA",
        TsvLayout(
            ("sentence",),
            "label",
            columns=("source", "label", "star", "sentence"),
            header_anyway=("index", "sentence"),
        ),
        ("sentence",),
    ),
    "sst2": _Source("SST-2", TsvLayout(("sentence",), "label"), ("sentence",)),
    "mrpc": _Source(
        "MRPC", TsvLayout(("#1 String", "#2 String"), "Quality"), ("sentence1", "sentence2")
    ),
    "stsb": _Source(
        "STS-B", TsvLayout(("sentence1", "sentence2"), "score"), ("sentence1", "sentence2"), ()
    ),
    "qqp": _Source(
        "QQP",
        TsvLayout(("question1", "question2"), "is_duplicate", ragged=True),
        ("question1", "question2"),
    ),
    "mnli": _Source(
        "MNLI",
        TsvLayout(("sentence1", "sentence2"), "gold_label", no_answer="-"),
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
    ),
    "qnli": _Source(
        "QNLI", TsvLayout(("question", "sentence"), "label"), ("question", "sentence"), _ENTAILMENT
    ),
    "rte": _Source(
        "RTE",
        TsvLayout(("sentence1", "sentence2"), "label"),
        ("sentence1", "sentence2"),
        _ENTAILMENT,
    ),
    "wnli": _Source(
        "WNLI", TsvLayout(("sentence1", "sentence2"), "label"), ("sentence1", "sentence2")
    ),
}


class GLUE(TextDataModule):
    """One of the nine GLUE tasks; MNLI is evaluated on its matched and mismatched sets.

    Without `data_dir` the examples come from the Hugging Face Hub. With it, from the files as
    published: `data_dir` holds `CoLA`, `SST-2`, `MRPC`, `STS-B`, `QQP`, `MNLI`, `QNLI`, `RTE`,
    `WNLI` (those needed), or is itself the folder of the task. Options: see `TextDataModule`.

    >>> sorted(GLUE.tasks)
    ['cola', 'mnli', 'mrpc', 'qnli', 'qqp', 'rte', 'sst2', 'stsb', 'wnli']
    """

    benchmark = "glue"
    hub_dataset: ClassVar[str] = "nyu-mll/glue"
    other_test = ", or put a labelled test.tsv into --data.data_dir"
    tasks: ClassVar[Mapping[str, Task]] = {
        "cola": Classification("cola", ("unacceptable", "acceptable"), ("matthews",)),
        "sst2": Classification("sst2", ("negative", "positive")),
        "mrpc": Classification("mrpc", ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        "stsb": Regression("stsb", low=0.0, high=5.0),
        "qqp": Classification("qqp", ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        "mnli": Classification(
            "mnli", ("entailment", "neutral", "contradiction"), eval_sets=("", "mismatched")
        ),
        "qnli": Classification("qnli", _ENTAILMENT),
        "rte": Classification("rte", _ENTAILMENT),
        "wnli": Classification("wnli", ("not_entailment", "entailment")),
    }

    def read(self) -> "dict[str, Dataset]":
        """The published splits, from `data_dir` or the Hub."""
        return self._read_hub() if self.data_dir is None else self._read_local(self.data_dir)

    @property
    def submissions(self) -> list[str]:
        """File names the GLUE server wants, one per test set, for `write_predictions`."""
        name = _SOURCES[self.task].folder
        return ["MNLI-m.tsv", "MNLI-mm.tsv"] if self.task == "mnli" else [f"{name}.tsv"]

    def write_predictions(self, path: Path, idx: Tensor, answers: Tensor) -> None:
        """Write a submission: `index` and `prediction` (the published label, or a score), in order.

        Args:
            path: file to write, named as in `submissions`.
            idx: `[n]` positions in the test set, in any order.
            answers: `[n]` class numbers or scores, as `Task.decode` gives them; scores are clipped
                to the task's range.
        """
        pairs = sorted(zip(idx.tolist(), answers.tolist(), strict=True))
        rows = [f"{index}\t{self._published(answer)}" for index, answer in pairs]
        path.write_text("\n".join(["index\tprediction", *rows]) + "\n", encoding="utf-8")

    def _published(self, answer: Any) -> str:
        if isinstance(self.spec, Regression):
            return f"{min(max(answer, self.spec.low), self.spec.high):.3f}"
        return _SOURCES[self.task].published[answer]

    def _read_local(self, data_dir: Path) -> "dict[str, Dataset]":
        from datasets import Dataset

        source = _SOURCES[self.task]
        folder = self._folder(data_dir, source.folder)
        files = _MNLI_FILES if self.task == "mnli" else _FILES
        splits = {}
        for split, name in files.items():
            if (folder / name).is_file():
                columns = read_tsv(folder / name, source.layout, self._label_parser())
                splits[split] = Dataset.from_dict(columns)
            elif split == "train" or (split == "validation" and not self.holdout_fraction):
                raise FileNotFoundError(
                    f"{folder} has no {name}; {self.task} needs the published GLUE files there"
                )
            elif split == "validation_mismatched":
                rank_zero_warn(f"{folder} has no {name}; only the matched set is evaluated")
        for split in ("train", "validation"):
            if split in splits and "label" not in splits[split].column_names:
                raise ValueError(
                    f"{folder / files[split]}, line 1: there is no column {source.layout.label!r}"
                )
        return splits

    def _folder(self, data_dir: Path, name: str) -> Path:
        if (data_dir / name).is_dir():
            return data_dir / name
        if (data_dir / "train.tsv").is_file():
            return data_dir
        raise FileNotFoundError(
            f"found neither {data_dir / name} nor {data_dir / 'train.tsv'}; point --data.data_dir "
            "at the published GLUE files, or run `lightning-kd assets` for an offline sst2"
        )

    def _label_parser(self) -> Callable[[str], int | float]:
        labels = _SOURCES[self.task].published
        if isinstance(self.spec, Regression):
            return _score_parser(self.spec)

        def parse(text: str) -> int:
            if text not in labels:
                raise ValueError(f"label {text!r} is not one of {', '.join(labels)}")
            return labels.index(text)

        return parse

    def _read_hub(self) -> "dict[str, Dataset]":
        from datasets import load_dataset

        try:
            found = load_dataset(self.hub_dataset, self.task)
        except (OSError, ValueError) as error:  # ValueError: offline, and only other tasks cached
            raise ConnectionError(
                f"could not load {self.task} of {self.hub_dataset!r} from the Hugging Face Hub "
                f"({str(error).splitlines()[0]}); without it, point --data.data_dir at the "
                "published GLUE files, or run `lightning-kd assets` for an offline sst2"
            ) from error
        splits = {name.removesuffix("_matched"): split for name, split in found.items()}
        return {name: self._columns(name, splits[name]) for name in _MNLI_FILES if name in splits}

    def _columns(self, name: str, split: Any) -> "Dataset":
        from datasets import Dataset

        if len(split) == 0:
            raise ValueError(f"the {name} split of {self.hub_dataset}/{self.task} is empty")
        columns: dict[str, list[Any]] = {"idx": list(range(len(split)))}
        for k, text in enumerate(_SOURCES[self.task].hub_texts, 1):
            columns[f"sentence{k}"] = list(split[text])
        labels = list(split["label"]) if "label" in split.column_names else []
        if set(labels) - {-1, -1.0, None}:  # otherwise the labels are secret
            columns["label"] = labels
            self._check_labels(name, split, labels)
        return Dataset.from_dict(columns)

    def _check_labels(self, name: str, split: Any, labels: list[Any]) -> None:
        where = f"{self.hub_dataset}/{self.task}, split {name}"
        spec = self.spec
        if isinstance(spec, Classification):
            names = getattr(split.features["label"], "names", list(spec.labels))
            if tuple(names) != spec.labels:
                raise ValueError(
                    f"{where}: labels are {', '.join(names)}; expected {', '.join(spec.labels)}"
                )
        low, high = (
            (spec.low, spec.high) if isinstance(spec, Regression) else (0, spec.num_labels - 1)
        )
        for position, label in enumerate(labels):
            if label is None or not low <= label <= high:
                raise ValueError(
                    f"{where}, example {position}: label {label} is not in {low:g}..{high:g}"
                )


def _score_parser(spec: Regression) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not spec.low <= score <= spec.high:
            raise ValueError(f"score {text!r} is not a number from {spec.low:g} to {spec.high:g}")
        return score

    return parse
