"""TriviaQA (Joshi et al., 2017), closed-book: questions of quizzes, without any evidence."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lightning_kd.data.generation import GenerationDataModule, check_template
from lightning_kd.data.records import Record, field, files_of, from_hub, json_records, text_of
from lightning_kd.tasks import CausalLM, Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TriviaQA"]

_HUB = "mandarjoshi/trivia_qa"
_SCORES = ("perplexity", "token_accuracy", "exact_match", "f1", "case_sensitive_match")
_FILES = {"unfiltered": "unfiltered-web-{}.json", "rc": "w*-{}.json"}  # web and wikipedia


class TriviaQA(GenerationDataModule):
    r"""Questions and short answers, known by several names (aliases).

    Without `data_dir` they come from the Hugging Face Hub, with it from the published
    `unfiltered-web-train.json` and `unfiltered-web-dev.json`, or (`source: rc`) from `web-` and
    `wikipedia-train.json` and `-dev.json`, of which a question that is in both counts once. Test
    answers are secret. A single file `triviaqa*.jsonl` of objects with `context`
    ("Question: ...\nAnswer:"), `answer` and `aliases` can be split by `holdout_fraction`.

    A model learns the answer's first name. `exact_match` and `f1` are the official ones, the best
    over all names after `lightning_kd.metrics.normalized`; `case_sensitive_match` leaves the texts
    as they are, as the paper of Sorted LLaMA has it.

    Args:
        task: `triviaqa`.
        tokenizer: see `TextDataModule`.
        data_dir: folder of the published files; None: the Hub.
        prompt_template: `{question}` stands for the question. In a chat template a user says the
            question alone.
        source: `unfiltered` or `rc`.
        options: see `GenerationDataModule`.

    >>> TriviaQA.tasks["triviaqa"].metric_names[2:]
    ('exact_match', 'f1', 'case_sensitive_match')
    """

    benchmark = "triviaqa"
    tasks: ClassVar[Mapping[str, Task]] = {
        "triviaqa": CausalLM("triviaqa", _SCORES, max_new_tokens=50)
    }

    def __init__(
        self,
        task: str,
        tokenizer: str,
        data_dir: str | None = None,
        prompt_template: str = "Question: {question}\nAnswer:",
        source: Literal["unfiltered", "rc"] = "unfiltered",
        **options: Any,
    ) -> None:
        super().__init__(task, tokenizer, data_dir, **options)
        check_template(prompt_template, "question")
        if source not in _FILES:
            raise ValueError(f"source must be unfiltered or rc, got {source!r}")
        self.prompt_template, self.source = prompt_template, source

    def read(self) -> "dict[str, Dataset]":
        """The published splits, from `data_dir` or the Hub."""
        if self.data_dir is None:
            found = from_hub(_HUB, f"{self.source}.nocontext")
            splits = {split: found[split] for split in ("train", "validation")}
            return {split: self._split(map(_of_hub, rows)) for split, rows in splits.items()}
        pattern = _FILES[self.source]
        patterns = {
            "train": [pattern.format("train")],
            "validation": [pattern.format("dev"), "triviaqa*.jsonl"],
        }
        paths = self.complete(files_of(self.data_dir, patterns), patterns)
        return {
            split: self._split(found for path in several for found in _read(path))
            for split, several in paths.items()
        }

    def prompt(self, question: str) -> str:
        """The prompt of a question."""
        return question if self.chat else self.prompt_template.replace("{question}", question)

    def _split(self, found: "Iterable[tuple[str, str, list[str]]]") -> "Dataset":
        rows = {
            (question, answer): self.row(self.prompt(question), answer, [answer, *aliases])
            | {"group": question}
            for question, answer, aliases in found
        }
        return self.dataset(list(rows.values()))


def _read(path: Path) -> list[tuple[str, str, list[str]]]:
    if path.suffix == ".jsonl":
        return [_of_line(record) for record in json_records(path)]
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); download the file again") from None
    data = field(str(path), content, "Data", list)
    return [_official(f"{path}, question {k}", row) for k, row in enumerate(data, 1)]


def _official(where: str, row: Any) -> tuple[str, str, list[str]]:
    answer = field(where, row, "Answer", dict)
    names = [*field(where, answer, "Aliases", list), *answer.get("HumanAnswers", [])]
    return text_of(where, row, "Question"), text_of(where, answer, "Value"), _texts(where, names)


def _of_hub(record: Record) -> tuple[str, str, list[str]]:
    where, row = record
    answer = field(where, row, "answer", dict)
    names = _texts(where, field(where, answer, "aliases", list))
    return text_of(where, row, "question"), text_of(where, answer, "value"), names


def _of_line(record: Record) -> tuple[str, str, list[str]]:
    where, row = record
    context = text_of(where, row, "context")
    framed = re.fullmatch(r"Question: (.*)\nAnswer:", context, re.DOTALL)
    names = _texts(where, field(where, row, "aliases", list))
    return framed[1] if framed else context, text_of(where, row, "answer"), names


def _texts(where: str, names: list[Any]) -> list[str]:
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"{where}: an alias is no text but {wrong[0]!r:.40}")
    return names
