"""Tiny data for tests: batches of every kind of task, and benchmarks' files as published."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_kd.tasks import (
    CausalLM,
    Classification,
    Image,
    MultipleChoice,
    Regression,
    SpanQA,
    Task,
)

VOCABULARY = 40
WORDS = [f"w{i}" for i in range(VOCABULARY - 5)]
TASKS: dict[str, Task] = {
    "choice": MultipleChoice("hellaswag", 4),
    "classification": Classification("sst2", ("negative", "positive")),
    "images": Image("digits", [str(digit) for digit in range(10)], num_channels=1),
    "regression": Regression("stsb", 0.0, 5.0),
    "spans": SpanQA("squad"),
    "text": CausalLM("alpaca", max_new_tokens=4),
}


def batch(size: int = 4, task: Task = TASKS["classification"], seed: int = 0) -> dict[str, Tensor]:
    """Right-padded random tokens of unequal lengths (or 4x4 pixels), with labels and idx."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(task, Image):
        return {
            "pixel_values": torch.randn(size, task.num_channels, 4, 4, generator=generator),
            "labels": torch.randint(task.num_labels, (size,), generator=generator),
            "idx": torch.arange(size),
        }
    if isinstance(task, MultipleChoice):
        return choice_batch(size, task.num_labels, seed)
    lengths = torch.randint(3, 9, (size,), generator=generator)
    mask = (torch.arange(8) < lengths[:, None]).long()
    tokens = torch.randint(5, VOCABULARY, (size, 8), generator=generator)
    if isinstance(task, CausalLM):  # the first one or two tokens are the prompt
        prompts = torch.randint(1, 3, (size,), generator=generator)
        target = mask.bool() & (torch.arange(8) >= prompts[:, None])
        labels = tokens.masked_fill(~target, -100)
    elif isinstance(task, Classification):
        labels = torch.randint(task.num_labels, (size,), generator=generator)
    elif isinstance(task, SpanQA):
        labels = spans(lengths, generator)
    else:
        labels = 5 * torch.rand(size, generator=generator)
    made = {
        "input_ids": tokens * mask,
        "attention_mask": mask,
        "labels": labels,
        "idx": torch.arange(size),
    }
    if isinstance(task, SpanQA):  # token 1 is the question
        made["answer_mask"] = mask.bool() & (torch.arange(8) != 1)
    return made


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


def loader(
    examples: int = 16, batch_size: int = 4, task: Task = TASKS["classification"], seed: int = 0
) -> DataLoader[Any]:
    """The same examples in the same order every epoch, in batches of equal size."""
    whole = batch(examples, task, seed)
    rows = [{k: v[i] for k, v in whole.items()} for i in range(examples)]
    return DataLoader(rows, batch_size=batch_size)  # type: ignore[arg-type]


def tokenizer_folder(folder: Path) -> Path:
    """A WordPiece tokenizer that knows ``w0``..``w34``."""
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def writer_tokenizer(folder: Path) -> Path:
    """A tokenizer of whole words for language models: ``w0``..., lines, padding and an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<end>"]
    vocabulary = {word: i for i, word in enumerate([*special, ":", "###", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return folder


def films_folder(folder: Path, train: int = 32, dev: int = 12, test: int = 8) -> Path:
    """The task ``reviews`` of instructions: to be answered by two words of the instruction."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("dev", dev), ("test", test)):
        rows = []
        for number in range(count):
            picks = torch.randint(len(WORDS), (4,), generator=generator)
            words = [WORDS[pick] for pick in picks]
            row = {"instruction": " ".join(words), "input": "", "output": " ".join(words[:2])}
            rows.append(row | {"film": f"{split}_{number // 2}"})
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return folder


def trivia_folder(folder: Path, train: int = 32, dev: int = 12) -> Path:
    """TriviaQA's published files, to be answered by a word of the question."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, first in (("train", train, 0), ("dev", dev, train)):
        rows: list[Any] = []
        for number in range(first, first + count):
            words = [WORDS[(number * step) % len(WORDS)] for step in (1, 3, 7)]
            answer = {"Value": words[0], "Aliases": words[:1], "NormalizedAliases": words[:1]}
            row = {"Question": " ".join(words), "QuestionId": f"q{number}", "Answer": answer}
            rows.append(row)
        (folder / f"unfiltered-web-{split}.json").write_text(json.dumps({"Data": rows}))
    return folder


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


def cifar_images(count: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random ``[n, 3, 32, 32]`` and labels 0, 1, ... 9, 0, ...; others from another first."""
    random = np.random.default_rng(first)
    pixels = random.integers(256, size=(count, 3, 32, 32), dtype=np.uint8)
    return pixels, (first + np.arange(count)) % 10


def digits_folder(folder: Path, train: int = 40, test: int = 12) -> Path:
    """The ``digits`` task: its class makes every second row of an image bright."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name, count in (("train", train), ("test", test)):
        labels = np.arange(count) % 10
        images = random.integers(40, size=(count, 8, 8, 1), dtype=np.uint8)
        images[np.arange(count), labels % 8] += (100 + 10 * labels)[:, None, None].astype(np.uint8)
        np.savez(folder / f"digits_{name}.npz", images=images, labels=labels)
    return folder


def python_2_batch(pixels: np.ndarray, labels: list[int], label_key: str = "labels") -> bytes:
    """A batch file byte for byte as Python 2 pickled it: byte strings, numpy 1's module names."""

    def string(text: bytes) -> bytes:
        return pickle.BINSTRING + struct.pack("<i", len(text)) + text

    def number(value: int) -> bytes:
        return pickle.BININT + struct.pack("<i", value)

    def call(function: str, arguments: bytes) -> bytes:
        module, _, name = function.rpartition(".")
        return pickle.GLOBAL + f"{module}\n{name}\n".encode() + arguments + pickle.REDUCE

    data = pixels.reshape(len(pixels), -1)
    kind = call("numpy.dtype", string(b"u1") + number(0) + number(1) + pickle.TUPLE3)
    order = string(b"|") + pickle.NONE * 3 + number(-1) * 2 + number(0)
    kind += pickle.MARK + number(3) + order + pickle.TUPLE + pickle.BUILD
    empty = pickle.GLOBAL + b"numpy\nndarray\n" + number(0) + pickle.TUPLE1 + string(b"b")
    array = call("numpy.core.multiarray._reconstruct", empty + pickle.TUPLE3)
    shape = number(data.shape[0]) + number(data.shape[1]) + pickle.TUPLE2
    state = number(1) + shape + kind + pickle.NEWFALSE + string(data.tobytes())
    array += pickle.MARK + state + pickle.TUPLE + pickle.BUILD
    numbers = pickle.EMPTY_LIST + pickle.MARK + b"".join(map(number, labels)) + pickle.APPENDS
    items = string(b"data") + array + string(label_key.encode()) + numbers
    return b"\x80\x02" + pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def pickled(content: object) -> bytes:
    """For small files such as ``batches.meta``."""
    return pickle.dumps(content)


def cifar10_folder(folder: Path, per_file: int = 10) -> Path:
    """CIFAR-10's python version as published, with few images in each of its six files."""
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        pixels, labels = cifar_images(per_file, first=k)
        (folder / name).write_bytes(python_2_batch(pixels, labels.tolist()))
    return folder


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
