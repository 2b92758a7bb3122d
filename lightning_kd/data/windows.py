"""Questions on passages as windows of tokens that fit a model, overlapping where one is too short.

A row of the table is a window, not a question. It knows which characters of the passage each token
is, so that a span of tokens is cut out of the text and never put together from word pieces.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Windows", "check_answer"]

_CHUNK = 500  # questions tokenized at once


class Windows:
    """How questions and passages become windows; calling it makes the table for `encode`.

    A window is ``[CLS] question [SEP] part of the passage [SEP]`` in the tokenizer's own form.

    Args:
        tokenizer: a fast Hugging Face tokenizer that begins with a [CLS] token.
        max_length: tokens of a window.
        doc_stride: by how many tokens of the passage two neighbouring windows are apart, where that
            is fewer than fit: they share the rest.
        max_question_length: longer questions are cut to so many tokens.

    Raises:
        ValueError: a tokenizer that cannot serve, or no room for the passage.
    """

    def __init__(
        self, tokenizer: Any, max_length: int, doc_stride: int, max_question_length: int
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.doc_stride, self.max_question_length = doc_stride, max_question_length
        pair = tokenizer("a", "a", padding=False, truncation=False)
        if not tokenizer.is_fast or pair["input_ids"][0] != tokenizer.cls_token_id:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} is not a fast one whose texts begin "
                "with a [CLS] token, which stands for 'no answer'; use a BERT, RoBERTa or similar "
                "model"
            )
        # What stands before the question, between it and the passage, and at the end; each with its
        # token type, where the model knows types.
        parts = np.array([-1 if part is None else part for part in pair.sequence_ids()])
        question, passage = np.flatnonzero(parts == 0), np.flatnonzero(parts == 1)
        cuts = [question[0], question[-1] + 1, passage[0], passage[-1] + 1]
        ids = np.split(np.array(pair["input_ids"]), cuts)
        self.special = ids[0], ids[2], ids[4]
        types = pair.get("token_type_ids")
        self.types = None if types is None else [part[:1] for part in np.split(types, cuts)]
        least = max_question_length + sum(len(part) for part in self.special) + 1
        if max_length < least:
            raise ValueError(
                f"max_length={max_length} leaves no room for a passage beside a question of "
                f"max_question_length={max_question_length}; it must be at least {least}"
            )

    def __call__(self, examples: "Dataset") -> Any:
        """One row per window.

        Args:
            examples: with columns `id`, `sentence1` (question), `sentence2` (passage) and `label`
                (the answers: `text` and `answer_start`, lists of the same length).

        Returns:
            An Arrow table: `input_ids`, `token_type_ids` (if the model has them), `answer_mask`,
            `char_begin`, `char_end` (of the token in the passage), lists; `labels`, the first and
            last token of the first answer, or twice 0 where the window does not hold it whole;
            `question`, the example's number; `idx`, the window's own.

        Raises:
            ValueError: an answer is not where it should be (a transform changed the passage).
        """
        import pyarrow as pa  # type: ignore[import-untyped]

        lists: dict[str, list[np.ndarray]] = {}
        questions: list[int] = []
        labels: list[tuple[int, int]] = []
        for question, row, label in self._rows(examples):
            for name, values in row.items():
                lists.setdefault(name, []).append(values)
            questions.append(question)
            labels.append(label)
        lengths = [len(ids) for ids in lists["input_ids"]]
        offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int32))
        columns = {
            name: pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(values)))
            for name, values in lists.items()
        }
        flat = pa.array(np.asarray(labels, dtype=np.int64).ravel())
        columns["labels"] = pa.FixedSizeListArray.from_arrays(flat, 2)
        columns["question"] = pa.array(np.asarray(questions, dtype=np.int64))
        columns["idx"] = pa.array(np.arange(len(questions)))
        return pa.table(columns)

    def _rows(
        self, examples: "Dataset"
    ) -> Iterator[tuple[int, dict[str, np.ndarray], tuple[int, int]]]:
        """Number of the question, columns and label of every window."""
        number = 0
        for chunk in examples.iter(batch_size=_CHUNK):
            questions = self._tokens([text.strip() for text in chunk["sentence1"]])["input_ids"]
            names = list(dict.fromkeys(chunk["sentence2"]))  # several questions to a passage
            found = self._tokens(names)
            passages = {
                name: (np.array(ids, np.int32), np.array(spans, np.int32).reshape(-1, 2))
                for name, ids, spans in zip(
                    names, found["input_ids"], found["offset_mapping"], strict=True
                )
            }
            for k, question in enumerate(questions):
                answer = _first_answer(chunk, k)
                ids, spans = passages[chunk["sentence2"][k]]
                tokens = np.array(question[: self.max_question_length], np.int32)
                for part in self._parts(len(tokens), len(ids)):
                    row = self._row(tokens, ids[part], spans[part])
                    yield number, row, _label(row, answer)
                number += 1

    def _tokens(self, texts: list[str]) -> Any:
        options = dict.fromkeys(("add_special_tokens", "truncation", "padding", "verbose"), False)
        return self.tokenizer(texts, return_offsets_mapping=True, **options)

    def _parts(self, question: int, passage: int) -> Iterator[slice]:
        """Which tokens of the passage are in each window."""
        room = self.max_length - question - sum(len(part) for part in self.special)
        step, begin = min(self.doc_stride, room), 0
        while begin + room < passage:
            yield slice(begin, begin + room)
            begin += step
        yield slice(begin, passage)

    def _row(self, question: np.ndarray, ids: np.ndarray, spans: np.ndarray) -> dict[str, Any]:
        """The columns of one window; characters of what is not the passage are 0."""
        parts = [self.special[0], question, self.special[1], ids, self.special[2]]
        sizes = [len(part) for part in parts]
        begin = sum(sizes[:3])
        row: dict[str, Any] = {
            "input_ids": np.concatenate(parts).astype(np.int32),
            "answer_mask": np.repeat(np.array([0, 0, 0, 1, 0], np.int8), sizes),
        }
        row["answer_mask"][0] = 1
        if self.types is not None:
            kinds = [kind.repeat(size) for kind, size in zip(self.types, sizes, strict=True)]
            row["token_type_ids"] = np.concatenate(kinds).astype(np.int32)
        for name, values in zip(("char_begin", "char_end"), spans.T, strict=True):
            row[name] = np.pad(values, (begin, sizes[4]))
        return row


def check_answer(where: str, passage: str, text: object, start: object) -> None:
    """Raise `ValueError` unless the answer's characters are those at its place."""
    if not isinstance(text, str) or not text or type(start) is not int or start < 0:
        raise ValueError(
            f"{where}: an answer needs a text and an answer_start, got {text!r} and {start!r}"
        )
    found = passage[start : start + len(text)]
    if found != text:
        raise ValueError(
            f"{where}: the answer {text!r} is not at answer_start {start}, where the passage has "
            f"{found!r}"
        )


def _first_answer(chunk: Mapping[str, Any], k: int) -> tuple[int, int] | None:
    """Where the first answer begins and ends in the passage, without spaces around it."""
    passage, given = chunk["sentence2"][k], chunk["label"][k]
    for text, start in zip(given["text"], given["answer_start"], strict=True):
        check_answer(f"question {chunk['id'][k]}", passage, text, start)
    if not given["text"]:
        return None
    text, start = given["text"][0], given["answer_start"][0]
    begin = start + len(text) - len(text.lstrip())
    return begin, max(begin, start + len(text.rstrip()))


def _label(row: Mapping[str, np.ndarray], answer: tuple[int, int] | None) -> tuple[int, int]:
    """First and last token of the answer, twice 0 where it is not in the window whole."""
    places = np.flatnonzero(row["answer_mask"])[1:]
    begin, end = row["char_begin"][places], row["char_end"][places]
    if answer is None or not len(places) or begin[0] > answer[0] or end[-1] < answer[1]:
        return 0, 0
    tokens = places[(begin < answer[1]) & (end > answer[0])]
    return (int(tokens[0]), int(tokens[-1])) if len(tokens) else (0, 0)
