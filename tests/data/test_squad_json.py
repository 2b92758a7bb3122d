"""The published JSON: what is read, and that each defect is named with file and question."""

import json

import pytest

from lightning_kd.data.squad_json import read_squad


def entry(name="q1", **changes):
    answers = [{"text": "b c", "answer_start": 2}, {"text": "b", "answer_start": 2}]
    return {"id": name, "question": "what?", "answers": answers, **changes}


def content(*entries, title="T", context="a b c"):
    return {
        "version": "1.1",
        "data": [{"title": title, "paragraphs": [{"context": context, "qas": list(entries)}]}],
    }


def without(key, **changes):
    return {k: v for k, v in entry(**changes).items() if k != key}


@pytest.fixture
def read(tmp_path):
    def reading(value, *, unanswerable=False):
        path = tmp_path / "train-v1.1.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return read_squad(path, unanswerable=unanswerable)

    return reading


def test_questions_in_order_with_all_their_answers(read) -> None:
    none = entry("q2", answers=[], is_impossible=True)
    first, second = read(content(entry(), none), unanswerable=True)
    assert first == {
        "id": "q1",
        "title": "T",
        "sentence1": "what?",
        "sentence2": "a b c",
        "label": {"text": ["b c", "b"], "answer_start": [2, 2]},
    }
    assert second["label"] == {"text": [], "answer_start": []}


def test_a_byte_order_mark_and_a_missing_title_do_no_harm(read) -> None:
    value = content(entry())
    del value["data"][0]["title"]
    assert read("\ufeff" + json.dumps(value))[0]["title"] == ""


ANSWER = {"text": "b c", "answer_start": 2}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "is empty; expected SQuAD's JSON"),
        ('{"data": [', "is not JSON .*; download it again"),
        ({"data": []}, "has no questions"),
        ({"version": "1.1"}, "there is no 'data'"),
        ([], "there is no 'data'"),
        ({"data": [{"title": "T"}]}, "article 0: there is no 'paragraphs'"),
        ({"data": [{"paragraphs": 3}]}, "article 0: 'paragraphs' is no list but 3"),
        (content(without("id")), "article 0, paragraph 0, entry 0: there is no 'id'"),
        (content(without("question")), "question q1: there is no 'question'"),
        (content(without("answers")), "question q1: there is no 'answers'"),
        (content(entry(question=" ")), "question q1: the question or its passage is empty"),
        (content(entry(question=7)), "question q1: 'question' is no text but 7"),
        (content(entry(), context=None), "paragraph 0: 'context' is no text but None"),
        (content(entry(), entry()), "question q1: the id is there twice"),
        (content(entry(answers=[{"text": "b"}])), "question q1: there is no 'answer_start'"),
        (
            content(entry(answers=[{**ANSWER, "answer_start": 1}])),
            "question q1: the answer 'b c' is not at answer_start 1, where the passage has ' b '",
        ),
        (content(entry(answers=[{**ANSWER, "answer_start": -3}])), "question q1: an answer needs"),
        (content(entry(answers=[{**ANSWER, "answer_start": "2"}])), "question q1: an answer needs"),
        (content(entry(answers=[{**ANSWER, "text": ""}])), "question q1: an answer needs a text"),
        (content(entry(answers=[])), "question q1: there is no answer; .* --data.task squad_v2"),
        (content(entry(is_impossible=True)), "question q1: is_impossible is True .* 2 answers"),
        (content(entry(answers=[], is_impossible=False)), "is_impossible is False .* 0 answers"),
    ],
)
def test_a_defect_is_named_with_its_place(value, message, read) -> None:
    with pytest.raises(ValueError, match=f"train-v1.1.json.*{message}"):
        read(value)
