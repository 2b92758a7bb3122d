"""SQuAD 1.1 and 2.0 (Rajpurkar et al., 2016, 2018): answers that are spans of Wikipedia."""

import json
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from lightning_kd.data.encoding import Encoded, load_tokenizer
from lightning_kd.data.span_answers import SpanAnswer, SpanKey
from lightning_kd.data.squad_json import check_questions, read_squad
from lightning_kd.data.text import TextDataModule
from lightning_kd.data.windows import Windows
from lightning_kd.evaluation import Stage
from lightning_kd.tasks import SpanQA, Task
from lightning_kd.tasks.spans import METRICS

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SQuAD"]


class SQuAD(TextDataModule):
    """Questions on passages: `squad` (1.1, every question has an answer) and `squad_v2` (2.0).

    Without `data_dir` the questions come from the Hugging Face Hub, with it from the published
    `train-v1.1.json` and `dev-v1.1.json`, or `train-v2.0.json` and `dev-v2.0.json`.

    A training example is a *window*: a question with as much of its passage as fits. Long passages
    make several, and a window without the answer has "no answer" as its label. Scores and
    predictions are of questions: the best span of all windows, in the passage's own characters.

    `limit_examples` counts questions. A holdout is drawn by article, so that no passage is in both
    parts. Transforms see the question as `sentence1`, the passage as `sentence2`, and as `label`
    the answers (`text` and `answer_start`, lists), which have to stay at their places.

    Args:
        task: `squad` or `squad_v2`.
        tokenizer: of a model whose texts begin with a [CLS] token.
        max_length: tokens of a window.
        doc_stride: by how many tokens of the passage neighbouring windows are apart, as BERT's
            script counted (`stride` in transformers is how many they share instead).
        max_question_length: longer questions are cut to so many tokens.
        n_best: spans kept of each window, and listed for each question by the predict stage.
        max_answer_length: tokens of the longest answer that is given.
        no_answer_threshold: "no answer" is given where it scores higher than the best span by more
            than this; higher answers more questions. Of `squad_v2` only; None is 0. `tuned` is the
            one of the best F1 in the last validation: the report names it, and a test of the same
            run uses it. Validation is then scored with what was chosen on it, as the official
            script's `best_f1` is; hold a part out (`holdout_fraction`) for a figure that is not.
        options: see `TextDataModule`.

    >>> sorted(SQuAD.tasks)
    ['squad', 'squad_v2']
    """

    benchmark = "squad"
    tasks: ClassVar[Mapping[str, Task]] = {
        "squad": SpanQA("squad"),
        "squad_v2": SpanQA("squad_v2", METRICS),
    }

    def __init__(  # noqa: PLR0913, PLR0917 (a data module is its options)
        self,
        task: str,
        tokenizer: str,
        data_dir: str | None = None,
        max_length: int = 384,
        doc_stride: int = 128,
        max_question_length: int = 64,
        n_best: int = 20,
        max_answer_length: int = 30,
        no_answer_threshold: float | Literal["tuned"] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(task, tokenizer, data_dir, max_length=max_length, **options)
        for name, value in (
            ("doc_stride", doc_stride),
            ("max_question_length", max_question_length),
            ("n_best", n_best),
            ("max_answer_length", max_answer_length),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if no_answer_threshold is not None and task != "squad_v2":
            raise ValueError(
                f"no_answer_threshold={no_answer_threshold} has no effect: every question of "
                f"{task} has an answer; drop it or use squad_v2"
            )
        self.doc_stride, self.max_question_length = doc_stride, max_question_length
        self.n_best, self.max_answer_length = n_best, max_answer_length
        self.threshold = None if task == "squad" else 0.0
        self._tunes = no_answer_threshold == "tuned"
        self._is_tuned = False
        if isinstance(no_answer_threshold, str) and not self._tunes:
            raise ValueError(
                f"no_answer_threshold must be a number or tuned, got {no_answer_threshold!r}"
            )
        if no_answer_threshold is not None and not isinstance(no_answer_threshold, str):
            self.threshold = no_answer_threshold
        self._keys: dict[Encoded, SpanKey] = {}

    @property
    def submissions(self) -> list[str]:
        """The official script's `predictions.json`; for what else is written see there."""
        return ["predictions.json"]

    def read(self) -> "dict[str, Dataset]":
        """The published splits, from `data_dir` or the Hub."""
        if self.data_dir is None:
            return self._read_hub()
        splits = {}
        for split, part in (("train", "train"), ("validation", "dev")):
            path = self.data_dir / f"{part}-{'v1.1' if self.task == 'squad' else 'v2.0'}.json"
            if path.is_file():
                splits[split] = _dataset(read_squad(path, unanswerable=self.threshold is not None))
            elif split == "train" or not self.holdout_fraction:
                raise FileNotFoundError(
                    f"there is no {path}; point --data.data_dir at the published SQuAD files"
                )
        return splits

    def write_predictions(self, path: Path, idx: Tensor, answers: Tensor) -> None:
        """Write what the official scripts read, and the best choices.

        `path` gets `{id: text}`. Beside it, `nbest_<name>` has for each question the `n_best`
        texts with scores and probabilities (a softmax of these scores), and for `squad_v2`
        `null_odds.json` by how much "no answer" scores higher (`--na-prob-file`).

        Args:
            path: of the predictions.
            idx: `[n]` windows, in any order.
            answers: `[n, k, 3]`, as `SpanKey.record` gives them.
        """
        (key,) = (self._keys[split] for split in self._splits("predict").values())
        ids = key.questions["id"]
        found = {ids[n]: answer for n, answer in key.answers(idx, answers).items()}
        _write(path, {name: answer.text for name, answer in found.items()})
        best = {name: _choices(answer, self.n_best) for name, answer in found.items()}
        _write(path.with_name(f"nbest_{path.name}"), best)
        if self.threshold is not None:
            odds = {name: answer.no_answer for name, answer in found.items()}
            _write(path.with_name("null_odds.json"), odds)

    def setup(self, stage: str | None = None) -> None:
        """See `BenchmarkDataModule`; a threshold that is to be tuned needs a validation first."""
        if stage in ("test", "predict") and self._tunes and not self._is_tuned:
            raise ValueError(
                f"no_answer_threshold=tuned is not known before a validation; to {stage}, give "
                "--data.no_answer_threshold the number that the run's summary.json has"
            )
        super().setup(stage)

    def answer_key(self, stage: Stage, loader: int) -> SpanKey:
        """The passages and true answers of a split."""
        return self._keys[list(self._splits(stage).values())[loader]]

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer itself; it pads to the right, so that position 0 is [CLS]."""
        tokenizer = load_tokenizer(self.tokenizer_name, self.max_length)
        tokenizer.padding_side = "right"
        return tokenizer

    @property
    def _tokenizing(self) -> list[Any]:
        return ["windows", self.max_length, self.doc_stride, self.max_question_length]

    def _tokenize(self, examples: "Dataset") -> Any:
        sizes = self.max_length, self.doc_stride, self.max_question_length
        return Windows(self.tokenizer, *sizes)(examples)

    def _encode(self, split: "Dataset", role: str) -> Encoded:
        encoded = super()._encode(split, role)
        if role != "train":
            spec = self.spec
            assert isinstance(spec, SpanQA)  # noqa: S101 (all of `tasks` are)
            self._keys[encoded] = SpanKey(
                spec,
                self._limited(split, role),
                encoded,
                self.n_best,
                self.max_answer_length,
                self.threshold,
                self._take_threshold if self._tunes and role == "validate" else None,
            )
        return encoded

    def _take_threshold(self, value: float) -> None:
        self._is_tuned = True
        self.notes["no_answer_threshold"] = value
        for key in self._keys.values():
            key.threshold = value

    def _held_together(self, train: "Dataset") -> Iterable[tuple[str, ...]]:
        groups = zip(train["title"], train["sentence2"], strict=True)
        return [(title or passage,) for title, passage in groups]

    def _read_hub(self) -> "dict[str, Dataset]":
        from datasets import load_dataset

        name = f"rajpurkar/{self.task}"
        try:
            found = load_dataset(name)
        except (OSError, ValueError) as error:  # ValueError: offline, and not cached
            raise ConnectionError(
                f"could not load {name!r} from the Hugging Face Hub "
                f"({str(error).splitlines()[0]}); without it, point --data.data_dir at the "
                "published SQuAD files"
            ) from error
        splits = {}
        for split in ("train", "validation"):
            rows = [
                {
                    "id": row["id"],
                    "title": row["title"],
                    "sentence1": row["question"],
                    "sentence2": row["context"],
                    "label": {k: list(row["answers"][k]) for k in ("text", "answer_start")},
                }
                for row in found[split]
            ]
            where = f"{name}, split {split}"
            splits[split] = _dataset(
                check_questions(where, rows, unanswerable=self.threshold is not None)
            )
        return splits


def _dataset(rows: list[dict[str, Any]]) -> "Dataset":
    from datasets import Dataset

    numbered = {"idx": list(range(len(rows)))}
    return Dataset.from_dict(numbered | {name: [row[name] for row in rows] for name in rows[0]})


def _choices(answer: SpanAnswer, count: int) -> list[dict[str, Any]]:
    kept = answer.choices[:count]
    highest = max((score for _, score in kept), default=0.0)  # a diverged model has none
    weights = [math.exp(score - highest) for _, score in kept]
    return [
        {"text": text, "score": score, "probability": weight / sum(weights)}
        for (text, score), weight in zip(kept, weights, strict=True)
    ]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
