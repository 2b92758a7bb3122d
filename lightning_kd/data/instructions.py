"""Instructions and what a person or a model answered: Alpaca, Dolly, OASST1, Self-Instruct.

And `reviews`, offline: what the review corpus of the assets knows of films, as instructions.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_kd.data.generation import GenerationDataModule, check_template
from lightning_kd.data.records import Record, field, from_hub, json_records
from lightning_kd.tasks import CausalLM, Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Instructions"]

_SCORES = ("perplexity", "token_accuracy", "rouge_l")
_HUB = {
    "alpaca": "tatsu-lab/alpaca",
    "dolly": "databricks/databricks-dolly-15k",
    "oasst1": "OpenAssistant/oasst1",
}
_NOT_ON_HUB = {
    "reviews": (
        "the task reviews is not on the Hub; run `lightning-kd assets` and set --data.data_dir "
        "assets/reviews/instructions"
    ),
    "self_instruct": (
        "self_instruct is not on the Hub as published; point --data.data_dir at the folder of "
        "seed_tasks.jsonl"
    ),
}
_FILES = {
    "alpaca": "alpaca_data*.json",
    "dolly": "databricks-dolly-15k*.jsonl*",
    "oasst1": "*oasst*.jsonl*",
    "self_instruct": "*seed_tasks*.jsonl*",
}


class Instructions(GenerationDataModule):
    """Instructions with answers: `alpaca`, `dolly`, `oasst1`, `self_instruct` and `reviews`.

    Without `data_dir` they come from the Hugging Face Hub (not `self_instruct`), with it from the
    published files:
    `alpaca_data.json`, `databricks-dolly-15k.jsonl`, the messages or trees of OASST1 (the
    best-ranked English reply to each first prompt) and Self-Instruct's `seed_tasks.jsonl` (other
    endings of these names are found too, and gzipped lines). Only the training part is published,
    so validation is a `holdout_fraction`, where an instruction is never on both sides.

    `reviews` reads `train.json`, `dev.json` and `test.json` in Alpaca's format from `data_dir`,
    which `lightning-kd assets` makes: what a critic wrote of a film, asked for by film and verdict,
    and the film that a plot is of. No film is in two splits.

    Args:
        task: see above.
        tokenizer: see `TextDataModule`.
        data_dir: folder of the published files; None: the Hub.
        prompt_template: of the prompt as a whole; `{instruction}` and `{input}` stand for what the
            example has. By default Alpaca's headings without its preamble, which is ours. Not used
            in a chat template, where a user says the instruction and, after an empty line, the
            input.
        input_template: what `{input}` becomes where an example has one; else it is empty.
        options: see `GenerationDataModule`.

    >>> sorted(Instructions.tasks)
    ['alpaca', 'dolly', 'oasst1', 'reviews', 'self_instruct']
    """

    benchmark = "instructions"
    tasks: ClassVar[Mapping[str, Task]] = {
        name: CausalLM(name, _SCORES) for name in ("alpaca", "dolly", "oasst1", "self_instruct")
    } | {"reviews": CausalLM("reviews", _SCORES, max_new_tokens=40)}

    def __init__(
        self,
        task: str,
        tokenizer: str,
        data_dir: str | None = None,
        prompt_template: str = "### Instruction:\n{instruction}{input}\n\n### Response:\n",
        input_template: str = "\n\n### Input:\n{input}",
        **options: Any,
    ) -> None:
        super().__init__(task, tokenizer, data_dir, **options)
        check_template(prompt_template, "instruction")
        self.prompt_template, self.input_template = prompt_template, input_template

    def read(self) -> "dict[str, Dataset]":
        """The published splits, from `data_dir` or the Hub."""
        if self.data_dir is None and self.task not in _HUB:
            raise ValueError(_NOT_ON_HUB[self.task])
        if self.task == "reviews":
            names = {"train": "train", "validation": "dev", "test": "test"}
            paths = {split: self._file(f"{name}.json") for split, name in names.items()}
            return {split: self._split(json_records(path)) for split, path in paths.items()}
        if not self.holdout_fraction:
            raise ValueError(
                f"{self.task} has no published split to validate on; set --data.holdout_fraction, "
                "to 0.02 for example"
            )
        if self.data_dir is None:
            return {"train": self._split(chain(*from_hub(_HUB[self.task]).values()))}
        return {"train": self._split(json_records(self._file(_FILES[self.task])))}

    def prompt(self, instruction: str, given: str) -> str:
        """The prompt of an instruction and its input (empty: it has none)."""
        if self.chat:
            return f"{instruction}\n\n{given}" if given else instruction
        told = self.input_template.replace("{input}", given) if given else ""
        # In this order: an instruction may speak of {input}.
        before, _, after = self.prompt_template.partition("{instruction}")
        fill = before.replace("{input}", told), after.replace("{input}", told)
        return f"{fill[0]}{instruction}{fill[1]}"

    def _split(self, found: Iterable[Record]) -> "Dataset":
        rows = []
        for instruction, given, output, group in _examples(self.task, found):
            if instruction.strip() and output.strip():  # or there is nothing to ask, or to learn
                row = self.row(self.prompt(instruction, given), output, [output])
                rows.append(row | {"group": group})
        return self.dataset(rows)

    def _file(self, pattern: str) -> Path:
        assert self.data_dir is not None  # noqa: S101 (asked for with it only)
        found = sorted(self.data_dir.glob(pattern))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise FileNotFoundError(
                f"{self.data_dir} must have one file {pattern}, it has {names}; point "
                "--data.data_dir at the published file's folder"
            )
        return found[0]


def _examples(task: str, found: Iterable[Record]) -> Iterator[tuple[str, str, str, str]]:
    """Instruction, input, output, and what is not to be torn apart."""
    if task == "oasst1":
        yield from _best_replies(found)
        return
    for where, row in found:
        instruction = str(field(where, row, "instruction"))
        if task == "dolly":
            yield (
                instruction,
                field(where, row, "context"),
                field(where, row, "response"),
                instruction,
            )
        elif task == "self_instruct":
            for instance in field(where, row, "instances", list):
                given, output = (field(where, instance, name) for name in ("input", "output"))
                yield instruction, given, output, instruction
        else:
            given = field(where, row, "input") if "input" in row else ""
            yield instruction, given, field(where, row, "output"), str(row.get("film", instruction))


def _best_replies(found: Iterable[Record]) -> Iterator[tuple[str, str, str, str]]:
    """First prompts in English and the reply to each that people ranked best.

    Longer conversations are left out. Objects are messages, or trees of them under `prompt`.
    """
    prompts: dict[str, str] = {}
    replies: dict[str, list[tuple[float, str]]] = {}
    for where, row in found:
        tree = field(where, row, "prompt", dict) if "prompt" in row else None
        message = row if tree is None else tree
        parent, name = message.get("parent_id"), str(field(where, message, "message_id"))
        text = str(field(where, message, "text"))
        if parent is not None:
            replies.setdefault(str(parent), []).append((_rank(message), text))
        elif field(where, message, "lang") == "en":
            prompts[name] = text
        # In a tree a reply's place says what it is to.
        for reply in (tree or {}).get("replies", ()):
            replies.setdefault(name, []).append((_rank(reply), str(field(where, reply, "text"))))
    for name, text in prompts.items():
        if name in replies:
            yield text, "", min(replies[name], key=itemgetter(0))[1], name


def _rank(message: Mapping[str, Any]) -> float:
    """0 is the best; a message that nobody ranked is behind all others."""
    rank = message.get("rank")
    return float("inf") if rank is None else float(rank)
