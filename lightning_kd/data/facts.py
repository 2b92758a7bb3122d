"""Facts in words: E2E, DART and WebNLG, with as many true texts as people wrote."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_kd.data.facts_files import (
    Meaning,
    dart_record,
    e2e_record,
    read_dart,
    read_e2e,
    read_webnlg,
    webnlg_hub_record,
)
from lightning_kd.data.generation import GenerationDataModule, check_template
from lightning_kd.data.records import Record, files_of, from_hub
from lightning_kd.tasks import CausalLM, Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["DART", "E2E", "FactsDataModule", "WebNLG"]

_TOKENS = ("perplexity", "token_accuracy")


def _parts(metric: str) -> tuple[str, str, str]:
    return metric, f"{metric}_seen", f"{metric}_unseen"


class FactsDataModule(GenerationDataModule, ABC):
    """Facts, and several texts that say them.

    Training has a pair for each text. Evaluations have each meaning once: one text is written and
    compared with all true ones of the same facts, and the perplexity is that of the first. A
    holdout keeps a meaning's pairs together.

    With a `holdout_fraction`, a folder that has a dev file without a training file can be tried: it
    is then split. Such figures compare with nothing that is published.

    Args:
        task: see `BenchmarkDataModule`.
        tokenizer: see `TextDataModule`.
        data_dir: folder of the published files; None: the Hugging Face Hub.
        prompt_template: `{facts}` stands for them, `{end}` for the tokenizer's end token, which
            LoRA's examples put between facts and text. In a chat template a user says the facts
            alone.
        options: see `GenerationDataModule`.
    """

    one_per_group = True
    files: ClassVar[Mapping[str, Sequence[str]]]
    hub: ClassVar[tuple[str, str | None]]
    hub_splits: ClassVar[Mapping[str, str]] = {
        split: split for split in ("train", "validation", "test")
    }

    def __init__(
        self,
        task: str,
        tokenizer: str,
        data_dir: str | None = None,
        prompt_template: str = "{facts}{end}",
        **options: Any,
    ) -> None:
        super().__init__(task, tokenizer, data_dir, **options)
        check_template(prompt_template, "facts")
        self.prompt_template = prompt_template

    @staticmethod
    @abstractmethod
    def read_file(path: Path) -> list[Meaning]:
        """The meanings of a published file; the same facts may come several times."""

    @staticmethod
    @abstractmethod
    def read_record(record: Record) -> Meaning:
        """The meaning of a row of the Hub."""

    def read(self) -> "dict[str, Dataset]":
        """The published splits, from `data_dir` or the Hub."""
        if self.data_dir is None:
            found = from_hub(*self.hub)
            splits = {
                split: [self.read_record(record) for record in found[name]]
                for split, name in self.hub_splits.items()
            }
        else:
            paths = self.complete(files_of(self.data_dir, self.files), self.files)
            splits = {split: self.read_file(path) for split, (path,) in paths.items()}
        return {s: self._split(m, pairs=s == "train") for s, m in splits.items()}

    def prompt(self, facts: str) -> str:
        """The prompt of a meaning."""
        if self.chat:
            return facts
        end = self.tokenizer.eos_token or ""
        return self.prompt_template.replace("{end}", end).replace("{facts}", facts)

    def _split(self, meanings: Iterable[Meaning], *, pairs: bool) -> "Dataset":
        texts: dict[str, list[str]] = {}
        parts: dict[str, str] = {}
        for meaning in meanings:
            texts.setdefault(meaning.facts, []).extend(meaning.texts)
            parts[meaning.facts] = meaning.part
        rows = []
        for facts, several in texts.items():
            prompt, more = self.prompt(facts), {"group": facts, "part": parts[facts]}
            shown = several if pairs else several[:1]
            rows += [self.row(prompt, text, several) | more for text in shown]
        return self.dataset(rows)


class E2E(FactsDataModule):
    """The E2E challenge (Novikova et al., 2017): restaurants by up to eight attributes.

    Files: `train.txt`, `valid.txt`, `test.txt` of LoRA's examples (`facts||text`), or the
    challenge's `trainset.csv`, `devset.csv`, `testset_w_refs.csv`, whose attributes are named as
    in the former. Arguments are those of `FactsDataModule`.

    >>> E2E.tasks["e2e"].metric_names[2:]
    ('bleu', 'nist', 'rouge_l', 'cider')
    """

    benchmark = "e2e"
    tasks: ClassVar[Mapping[str, Task]] = {
        "e2e": CausalLM("e2e", (*_TOKENS, "bleu", "nist", "rouge_l", "cider"))
    }
    files = {  # noqa: RUF012 (declared above)
        "train": ["train.txt", "trainset.csv"],
        "validation": ["valid.txt", "devset.csv"],
        "test": ["test.txt", "testset_w_refs.csv"],
    }
    hub = "tuetschek/e2e_nlg", None
    read_file = staticmethod(read_e2e)
    read_record = staticmethod(e2e_record)


class DART(FactsDataModule):
    """DART (Nan et al., 2021): triples out of tables, WebNLG and E2E; relations in lower case.

    Files: `dart-v1.1.1-full-train.json`, `-dev.json`, `-test.json`. Sets of the same triples in
    the same order are one meaning. Arguments are those of `FactsDataModule`.

    >>> DART.tasks["dart"].metric_names[2:]
    ('bleu', 'ter')
    """

    benchmark = "dart"
    tasks: ClassVar[Mapping[str, Task]] = {"dart": CausalLM("dart", (*_TOKENS, "bleu", "ter"))}
    files = {  # noqa: RUF012 (declared above)
        split: [f"dart-v1.1.1-full-{name}.json"]
        for split, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
    }
    hub = "Yale-LILY/dart", None
    read_file = staticmethod(read_dart)
    read_record = staticmethod(dart_record)


class WebNLG(FactsDataModule):
    """WebNLG 2017 (Gardent et al., 2017): triples of DBpedia; the test has categories of its own.

    Files: `train.json`, `dev.json`, `test.json`. Names such as `bleu_unseen` are scores of the
    categories that training has not; the dev set has none, and no such score. Arguments are those
    of `FactsDataModule`.

    >>> WebNLG.tasks["webnlg"].metric_names[2:5]
    ('bleu', 'bleu_seen', 'bleu_unseen')
    """

    benchmark = "webnlg"
    tasks: ClassVar[Mapping[str, Task]] = {
        "webnlg": CausalLM("webnlg", (*_TOKENS, *_parts("bleu"), *_parts("ter")))
    }
    files = {  # noqa: RUF012 (declared above)
        "train": ["train.json"],
        "validation": ["dev.json"],
        "test": ["test.json"],
    }
    hub = "webnlg-challenge/web_nlg", "webnlg_challenge_2017"
    hub_splits = {  # noqa: RUF012 (declared above)
        "train": "train", "validation": "dev", "test": "test",
    }  # fmt: skip
    read_file = staticmethod(read_webnlg)
    read_record = staticmethod(webnlg_hub_record)
