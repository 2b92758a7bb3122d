"""Reader of the JSON files that SQuAD was published in; a defect names file and question."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_kd.data.windows import check_answer

__all__ = ["check_questions", "read_squad"]

Question = dict[str, Any]
"""`id`, `title`, `sentence1` (question), `sentence2` (passage), `label` (the answers)."""


def read_squad(path: Path, *, unanswerable: bool) -> list[Question]:
    """The questions of a file, in its order.

    Args:
        path: the file.
        unanswerable: whether questions without an answer are allowed (SQuAD 2.0).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is empty, cut off, lacks a key, has an id twice, or an answer that is not
            where it should be.
    """
    raw = path.read_bytes()
    if not raw.strip():
        raise ValueError(f"{path} is empty; expected SQuAD's JSON")
    try:
        content = json.loads(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from None
    return check_questions(str(path), list(_questions(path, content)), unanswerable=unanswerable)


def check_questions(where: str, questions: list[Question], *, unanswerable: bool) -> list[Question]:
    """The questions themselves, when they can be used; see `read_squad`."""
    if not questions:
        raise ValueError(f"{where} has no questions")
    seen: set[str] = set()
    for row in questions:
        place = f"{where}, question {row['id']}"
        if row["id"] in seen:
            raise ValueError(f"{place}: the id is there twice")
        seen.add(row["id"])
        if not row["sentence1"].strip() or not row["sentence2"].strip():
            raise ValueError(f"{place}: the question or its passage is empty")
        for text, start in zip(row["label"]["text"], row["label"]["answer_start"], strict=True):
            check_answer(place, row["sentence2"], text, start)
        if not row["label"]["text"] and not unanswerable:
            raise ValueError(f"{place}: there is no answer; SQuAD 2.0 is --data.task squad_v2")
    return questions


def _questions(path: Path, content: Any) -> Iterator[Question]:
    for a, article in enumerate(_list(content, "data", str(path))):
        where = f"{path}, article {a}"
        paragraphs = _list(article, "paragraphs", where)
        for p, paragraph in enumerate(paragraphs):
            inside = f"{where}, paragraph {p}"
            passage = _text(paragraph, "context", inside)
            for q, entry in enumerate(_list(paragraph, "qas", inside)):
                name = _text(entry, "id", f"{inside}, entry {q}")
                place = f"{path}, question {name}"
                answers = _list(entry, "answers", place)
                if bool(answers) == bool(entry.get("is_impossible", not answers)):
                    raise ValueError(
                        f"{place}: is_impossible is {entry['is_impossible']} and there are "
                        f"{len(answers)} answers"
                    )
                yield {
                    "id": name,
                    "title": article["title"] if isinstance(article.get("title"), str) else "",
                    "sentence1": _text(entry, "question", place),
                    "sentence2": passage,
                    "label": {
                        "text": [_text(x, "text", place) for x in answers],
                        "answer_start": [_value(x, "answer_start", place) for x in answers],
                    },
                }


def _value(holder: Any, key: str, where: str) -> Any:
    if not isinstance(holder, Mapping) or key not in holder:
        raise ValueError(f"{where}: there is no {key!r}")
    return holder[key]


def _list(holder: Any, key: str, where: str) -> list[Any]:
    value = _value(holder, key, where)
    if not isinstance(value, list):
        raise ValueError(f"{where}: {key!r} is no list but {value!r:.40}")  # noqa: TRY004 (a file's)
    return value


def _text(holder: Any, key: str, where: str) -> str:
    value = _value(holder, key, where)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} is no text but {value!r:.40}")  # noqa: TRY004 (a file's)
    return value
