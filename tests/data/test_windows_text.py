"""Every answer comes back in the passage's own characters; real text, the real tokenizer."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from lightning_kd.data.windows import Windows

pytestmark = pytest.mark.offline
ODD = [
    "\u00a0",
    "  ",
    "\n",
    " \u2013 ",
    " na\u00efve caf\u00e9 ",
    " \u4e2d\u6587 ",
    " \U0001f600 ",
    " $5,000.50 ",
]


@pytest.mark.parametrize("max_length", [48, 96, 256])
def test_gold_spans_of_words_come_back_exactly(assets: Path, max_length) -> None:
    """From every window that holds the answer whole; at least one does when windows overlap."""
    tokenizer: Any = AutoTokenizer.from_pretrained(assets / "minilm")
    lines = (assets / "reviews/SST-2/dev.tsv").read_text().splitlines()[1:]
    draw = random.Random(0)
    rows: dict[str, list[Any]] = {"id": [], "sentence1": [], "sentence2": [], "label": []}
    for number in range(150):
        texts = [line.split("\t")[0] for line in draw.sample(lines, 6)]
        passage = "".join(text + draw.choice(ODD) for text in texts)
        words = list(re.finditer(r"\b[^\W_]+\b", passage))  # with punctuation right behind, too
        first = draw.randrange(len(words) - 3)
        start, end = words[first].start(), words[first + draw.randrange(4)].end()
        answer = passage[start:end]
        rows["id"].append(str(number))
        rows["sentence1"].append(texts[0][:40])
        rows["sentence2"].append(passage)
        rows["label"].append({"text": [answer], "answer_start": [start]})
    table = Windows(tokenizer, max_length, 16, 12)(Dataset.from_dict(rows)).to_pylist()
    assert (len(table) > 150) == (max_length < 256)
    found = set()
    for row in table:
        first, last = row["labels"]
        if first:
            passage = rows["sentence2"][row["question"]]
            text = passage[row["char_begin"][first] : row["char_end"][last]]
            assert text == rows["label"][row["question"]]["text"][0]
            found.add(row["question"])
    assert found == set(range(150))
