"""GSM8K (Cobbe et al., 2021): school problems whose solutions end in a number."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_kd.data.generation import GenerationDataModule, check_template
from lightning_kd.data.records import Record, files_of, from_hub, json_records, text_of
from lightning_kd.metrics.numbers import final_answer
from lightning_kd.tasks import CausalLM, Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["GSM8K"]

_HUB = "openai/gsm8k"
_SCORES = ("perplexity", "token_accuracy", "final_answer_match", "last_number_match")
_FILES = {"train": ["train.jsonl"], "validation": ["test.jsonl"]}


class GSM8K(GenerationDataModule):
    """Problems in words, solutions in steps, and behind `####` the answer.

    Without `data_dir` they come from the Hugging Face Hub, with it from the published `train.jsonl`
    and `test.jsonl`. The labels of the published test set are public and there is no dev set: it is
    what is validated on, and the test set where a `holdout_fraction` says what to choose by.

    `final_answer_match` compares the numbers behind `####`, as the official script does;
    `last_number_match` takes the last number that was written instead.

    Args:
        task: `gsm8k`.
        tokenizer: see `TextDataModule`.
        data_dir: folder of the published files; None: the Hub.
        prompt_template: `{question}` stands for the problem. In a chat template a user says the
            problem alone.
        keep_calculations: learn the published marks of each calculation (`<<48/2=24>>`) as well.
        options: see `GenerationDataModule`.

    >>> GSM8K.tasks["gsm8k"].metric_names[2:]
    ('final_answer_match', 'last_number_match')
    """

    benchmark = "gsm8k"
    tasks: ClassVar[Mapping[str, Task]] = {"gsm8k": CausalLM("gsm8k", _SCORES, max_new_tokens=256)}

    def __init__(
        self,
        task: str,
        tokenizer: str,
        data_dir: str | None = None,
        prompt_template: str = "Question: {question}\nAnswer:",
        keep_calculations: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(task, tokenizer, data_dir, **options)
        check_template(prompt_template, "question")
        self.prompt_template, self.keep_calculations = prompt_template, keep_calculations

    def read(self) -> "dict[str, Dataset]":
        """The published splits, from `data_dir` or the Hub; the test set is `validation`."""
        if self.data_dir is None:
            found = from_hub(_HUB, "main")
            return {"train": self._split(found["train"]), "validation": self._split(found["test"])}
        paths = self.complete(files_of(self.data_dir, _FILES), _FILES)
        return {split: self._split(json_records(path)) for split, (path,) in paths.items()}

    def _split(self, found: Iterable[Record]) -> "Dataset":
        rows = []
        for where, given in found:
            question, answer = text_of(where, given, "question"), text_of(where, given, "answer")
            if final_answer(answer) is None:
                raise ValueError(f"{where}: 'answer' has no number behind ####, {answer[-30:]!r}")
            if not self.keep_calculations:
                answer = re.sub(r"<<.*?>>", "", answer)
            framed = self.prompt_template.replace("{question}", question)
            row = self.row(question if self.chat else framed, answer, [answer])
            rows.append(row | {"group": question})
        return self.dataset(rows)
