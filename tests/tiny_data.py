"""Tiny data: batches that are more than a text and a label, and benchmarks in published formats."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 40
WORDS = [f"w{i}" for i in range(VOCABULARY - 5)]


def choice_batch(size: int, choices: int, seed: int = 0) -> dict[str, Tensor]:
    """Right-padded random tokens ``[b, k, l]`` of unequal lengths, with labels and idx."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (size, choices, 1), generator=generator)
    mask = (torch.arange(8) < lengths).long()
    tokens = torch.randint(5, VOCABULARY, (size, choices, 8), generator=generator)
    return {
        "input_ids": tokens * mask,
        "attention_mask": mask,
        "labels": torch.randint(choices, (size,), generator=generator),
        "idx": torch.arange(size),
    }


def spans(lengths: Tensor, generator: torch.Generator) -> Tensor:
    """First and last token in ``2..length-1`` for each length, about every fourth twice 0."""
    draws = torch.rand(len(lengths), 2, generator=generator).sort(1).values
    places = 2 + (draws * (lengths[:, None] - 2)).long()
    kept = torch.rand(len(lengths), generator=generator) > 0.25
    return places * kept[:, None]


def sst2_folder(folder: Path, train: int = 32, dev: int = 12, test: int = 8) -> Path:
    """SST-2 as published (with labels in test.tsv): the first word decides the label."""
    generator = torch.Generator().manual_seed(0)
    target = folder / "SST-2"
    target.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("dev", dev), ("test", test)):
        rows = ["sentence\tlabel"]
        for _ in range(count):
            words = torch.randint(
                len(WORDS), (int(torch.randint(2, 8, (1,), generator=generator)),)
            )
            words = torch.randint(len(WORDS), words.shape, generator=generator)
            rows.append(" ".join(WORDS[w] for w in words) + f"\t{int(words[0]) % 2}")
        (target / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def squad_folder(folder: Path, train: int = 6, dev: int = 3) -> Path:
    """SQuAD 1.1 and 2.0 as published: articles of two passages with two questions each.

    A question asks for the words after one that its passage has once; in 2.0 every second one asks
    for a word that is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for version in ("v1.1", "v2.0"):
        for name, count, first in (("train", train, 0), ("dev", dev, 1000)):
            data = [_article(first + i, unanswerable=version == "v2.0") for i in range(count)]
            content = json.dumps({"version": version, "data": data})
            (folder / f"{name}-{version}.json").write_text(content)
    return folder


def _article(number: int, *, unanswerable: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    paragraphs = []
    for p in range(2):
        words = [WORDS[w] for w in torch.randperm(len(WORDS) - 5, generator=generator)[:20]]
        entries = []
        for q, place in enumerate(torch.randint(1, 17, (2,), generator=generator).tolist()):
            nowhere = unanswerable and q == 1
            text = " ".join(words[place : place + 2])
            start = len(" ".join(words[:place])) + 1
            entry = {
                "id": f"{number}-{p}-{q}",
                "question": WORDS[-1 - p] if nowhere else words[place - 1],
                "answers": [] if nowhere else [{"text": text, "answer_start": start}],
            }
            entries.append(entry | ({"is_impossible": nowhere} if unanswerable else {}))
        paragraphs.append({"context": " ".join(words), "qas": entries})
    return {"title": f"Article {number}", "paragraphs": paragraphs}


def hellaswag_folder(folder: Path, train: int = 16, dev: int = 8, test: int = 4) -> Path:
    """HellaSwag as published: the right ending begins with the word that its context begins with.

    Two examples in a row are of one source; those with an even number have a sentence begun.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, first in (("train", train, 0), ("val", dev, 1000), ("test", test, 2000)):
        rows = [_ending(first + i, labelled=name != "test") for i in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"hellaswag_{name}.jsonl").write_text(text)
    return folder


def _ending(number: int, *, labelled: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    picks = [WORDS[w] for w in torch.randperm(len(WORDS), generator=generator)]
    right = int(torch.randint(4, (1,), generator=generator))
    size = int(torch.randint(1, 4, (1,), generator=generator))
    endings = [" ".join(picks[5 + 3 * i : 5 + 3 * i + size]) for i in range(4)]
    endings[right] = " ".join([picks[0], *endings[right].split()[1:]])
    begun = picks[4] if number % 2 == 0 else ""
    context = " ".join(picks[:4])
    row = {
        "ind": number,
        "activity_label": "Talking",
        "ctx_a": context,
        "ctx_b": begun,
        "ctx": f"{context} {begun}".strip(),
        "endings": endings,
        "source_id": f"tiny~{number // 2}",
    }
    return row | ({"label": right} if labelled else {})
