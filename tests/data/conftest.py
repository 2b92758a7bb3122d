"""Tiny published files and a tiny tokenizer, so that the real data modules run without network."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_kd.data import GLUE, Transform, text

WORDS = ["good", "bad", "film", "plot", "is", "was", "not", "very", "the", "a", "dull", "sharp"]
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
}


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A WordPiece tokenizer whose file asks for a fixed length, as MiniLM's does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {w: i for i, w in enumerate([*SPECIAL.values(), *WORDS])}
    inner = Tokenizer(models.WordPiece(vocab, unk_token=SPECIAL["unk_token"]))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    inner.enable_truncation(8)
    inner.enable_padding(length=8)
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **SPECIAL,
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return str(folder)


def sentence(seed: int) -> str:
    """One to nine words, a function of the number; different for different small numbers."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 10, (), generator=generator))
    picks = torch.randint(len(WORDS), (count,), generator=generator)
    return " ".join(WORDS[k] for k in picks.tolist())


def write(path: Path, rows: list[list[str]], start: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = start + "".join("\t".join(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.fixture
def sst2_dir(tmp_path: Path) -> Path:
    """50 training and 11 dev sentences in SST-2's layout, no test file."""
    for name, count, first in (("train", 50, 0), ("dev", 11, 1000)):
        rows = [[sentence(first + i), str(i % 2)] for i in range(count)]
        write(tmp_path / "glue" / "SST-2" / f"{name}.tsv", [["sentence", "label"], *rows])
    return tmp_path / "glue"


@pytest.fixture
def make(sst2_dir, tokenizer_dir, tmp_path):
    def build(**options: Any) -> GLUE:
        options = {"data_dir": str(sst2_dir), "cache_dir": str(tmp_path / "cache"), **options}
        return GLUE("sst2", tokenizer_dir, **options)

    return build


@pytest.fixture
def no_tokenizing(monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("tokenized again")

    return lambda: monkeypatch.setattr(text, "tokenize", refuse)


class Shout(Transform):
    """Appends a word to every training sentence."""

    calls = 0

    def __init__(self, word: str = "film") -> None:
        self.word = word

    def __call__(self, examples: Any) -> Any:
        Shout.calls += 1
        texts = [f"{text} {self.word}" for text in examples["sentence1"]]
        return examples.remove_columns("sentence1").add_column("sentence1", texts)

    def fingerprint(self) -> str:
        return f"Shout({self.word})"
