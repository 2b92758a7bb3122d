"""Instructions and what a person or a model answered: Alpaca, Dolly, OASST1, Self-Instruct.

And `reviews`, offline: what the review corpus of the assets knows of films, as instructions.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_kd.data.generation import GenerationDataModule, text_rows
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
_FILES = {
    "alpaca": "alpaca_data*.json",
    "dolly": "databricks-dolly-15k*.jsonl",
    "oasst1": "*oasst*.jsonl",
    "self_instruct": "*seed_tasks*.jsonl",
}


class Instructions(GenerationDataModule):
    """Instructions with answers: `alpaca`, `dolly`, `oasst1`, `self_instruct` and `reviews`.

    Without `data_dir` they come from the Hugging Face Hub (not `self_instruct`), with it from the
    published files:
    `alpaca_data.json`, `databricks-dolly-15k.jsonl`, the message trees of OASST1 (the best-ranked
    English reply to each first prompt) and Self-Instruct's `seed_tasks.jsonl` (other endings of
    these names are found too). Only the training part is published, so validation is
    a `holdout_fraction`, where an instruction is never on both sides.

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
        if "{instruction}" not in prompt_template:
            raise ValueError(
                f"prompt_template has no {{instruction}}, so that all prompts would be the same; "
                f"got {prompt_template!r}"
            )
        self.prompt_template, self.input_template = prompt_template, input_template

    def read(self) -> "dict[str, Dataset]":
        """The published splits, from `data_dir` or the Hub."""
        if self.task == "reviews":
            return self._read_reviews()
        if self.data_dir is None and self.task not in _HUB:
            raise ValueError(
                f"{self.task} is not on the Hub as published; point --data.data_dir at the folder "
                f"of {_FILES[self.task]}"
            )
        if self.data_dir is None:
            rows, where = self._from_hub(), _HUB[self.task]
        else:
            path = self._file(_FILES[self.task])
            rows, where = _objects(path), str(path)
        if not self.holdout_fraction:
            raise ValueError(
                f"{self.task} has no published split to validate on; set --data.holdout_fraction, "
                "to 0.02 for example"
            )
        return {"train": self._split(where, rows)}

    def prompt(self, instruction: str, given: str) -> str:
        """The prompt of an instruction and its input (empty: it has none)."""
        if self.chat:
            return f"{instruction}\n\n{given}" if given else instruction
        told = self.input_template.replace("{input}", given) if given else ""
        # In this order: an instruction may speak of {input}.
        before, _, after = self.prompt_template.partition("{instruction}")
        fill = before.replace("{input}", told), after.replace("{input}", told)
        return f"{fill[0]}{instruction}{fill[1]}"

    def _read_reviews(self) -> "dict[str, Dataset]":
        if self.data_dir is None:
            raise ValueError(
                "the task reviews is not on the Hub; run `lightning-kd assets` and set "
                "--data.data_dir assets/reviews/instructions"
            )
        names = {"train": "train", "validation": "dev", "test": "test"}
        paths = {split: self._file(f"{name}.json") for split, name in names.items()}
        return {s: self._split(str(path), _objects(path)) for s, path in paths.items()}

    def _split(self, where: str, found: Any) -> "Dataset":
        rows = []
        for number, (instruction, given, output, group) in enumerate(_examples(self.task, found)):
            if not all(isinstance(text, str) for text in (instruction, given, output)):
                raise ValueError(
                    f"{where}: record {number} has no instruction, input and output as texts; give "
                    "the published file"
                )
            if not instruction.strip() or not output.strip():
                continue  # there is nothing to ask for, or nothing to learn
            row = {"sentence1": self.prompt(instruction, given), "sentence2": output}
            rows.append(row | {"references": [output], "group": group})
        if not rows:
            raise ValueError(f"{where} has no example; give the published file")
        return text_rows(rows)

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

    def _from_hub(self) -> Any:
        from datasets import concatenate_datasets, load_dataset

        name = _HUB[self.task]
        try:
            found = load_dataset(name)
        except (OSError, ValueError, RuntimeError) as error:  # the last: a set that needs its code
            raise ConnectionError(
                f"could not load {name!r} from the Hugging Face Hub "
                f"({str(error).splitlines()[0]}); without it, point --data.data_dir at the "
                "published file"
            ) from error
        return concatenate_datasets(list(found.values()))


def _objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list, or of JSON lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON ({error}); give the published file") from error
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise ValueError(f"{path} is no list of objects; give the published file")
        return found
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, is no JSON ({error})") from error
    return rows


def _examples(task: str, rows: Any) -> Iterator[tuple[Any, Any, Any, str]]:
    """Instruction, input, output, and what is not to be torn apart."""
    if task == "oasst1":
        yield from _best_replies(rows)
        return
    for row in rows:
        instruction = row.get("instruction")
        if task == "dolly":
            yield instruction, row.get("context"), row.get("response"), str(instruction)
        elif task == "self_instruct":
            for instance in row.get("instances", ()):
                yield instruction, instance.get("input"), instance.get("output"), str(instruction)
        else:
            given = row.get("input", "")
            yield instruction, given, row.get("output"), str(row.get("film", instruction))


def _best_replies(rows: Any) -> Iterator[tuple[Any, str, Any, str]]:
    """First prompts in English and the reply to each that people ranked best.

    Longer conversations are left out. Rows are messages, or trees of them under `prompt`.
    """
    messages: list[dict[str, Any]] = []
    for row in rows:
        messages += [row["prompt"], *row["prompt"].get("replies", ())] if "prompt" in row else [row]
    parents = {m.get("parent_id") for m in messages}
    firsts = {
        m["message_id"]: m["text"]
        for m in messages
        if m.get("parent_id") is None and m.get("lang") == "en" and m["message_id"] in parents
    }
    best: dict[str, tuple[float, str]] = {}
    for message in messages:
        parent = str(message.get("parent_id"))
        if parent in firsts:
            rank = message.get("rank")
            rank = float("inf") if rank is None else float(rank)
            if parent not in best or rank < best[parent][0]:
                best[parent] = rank, message["text"]
    for parent, (_, reply) in best.items():
        yield firsts[parent], "", reply, parent
