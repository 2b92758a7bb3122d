"""Windows of tokens: what is in each, where the answer is, and which characters a token is."""

from typing import Any

import pytest
from datasets import Dataset

from lightning_kd.data.windows import Windows

WORDS = ["good", "bad", "film", "plot", "is", "was", "not", "very", "the", "a", "dull", "sharp"]


@pytest.fixture
def tokenizer(tokenizer_dir) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


def examples(*rows) -> Dataset:
    """Rows of question, passage and answer texts (at their first occurrence)."""
    return Dataset.from_dict(
        {
            "id": [f"q{i}" for i in range(len(rows))],
            "sentence1": [row[0] for row in rows],
            "sentence2": [row[1] for row in rows],
            "label": [
                {"text": list(row[2:]), "answer_start": [row[1].index(text) for text in row[2:]]}
                for row in rows
            ],
        }
    )


def windows(tokenizer, data, max_length=10, doc_stride=2, max_question_length=3) -> list[Any]:
    made = Windows(tokenizer, max_length, doc_stride, max_question_length)
    return made(data).to_pylist()


def test_a_short_passage_is_what_the_tokenizer_makes_of_the_pair(tokenizer) -> None:
    data = examples(("is it bad", "the film was dull", "film"))
    (row,) = windows(tokenizer, data, 20)
    pair = tokenizer("is it bad", "the film was dull", truncation=False, padding=False)
    assert row["input_ids"] == pair["input_ids"]
    assert row["token_type_ids"] == pair["token_type_ids"]
    assert row["answer_mask"] == [1, 0, 0, 0, 0, 1, 1, 1, 1, 0]
    assert row["labels"] == [6, 6]
    assert (row["idx"], row["question"]) == (0, 0)


def test_windows_are_a_stride_apart_and_the_last_ends_with_the_passage(tokenizer) -> None:
    """Eight words where five fit: they begin at words 0, 2 and 4 (the last is cut)."""
    passage = " ".join(WORDS[:8])
    rows = windows(tokenizer, examples(("a sharp", passage, "film")), 10, 2)
    ids = tokenizer.convert_tokens_to_ids(WORDS[:8])
    seen = [[t for t, kept in zip(r["input_ids"], r["answer_mask"], strict=True) if kept][1:]
            for r in rows]  # fmt: skip
    assert seen == [ids[0:5], ids[2:7], ids[4:8]]
    assert [row["labels"] for row in rows] == [[6, 6], [4, 4], [0, 0]]
    assert [row["idx"] for row in rows] == [0, 1, 2]
    assert max(len(row["input_ids"]) for row in rows) == 10


def test_a_stride_beyond_what_fits_leaves_nothing_out(tokenizer) -> None:
    passage = " ".join(WORDS[:12])
    rows = windows(tokenizer, examples(("a", passage)), 10, 100)
    kept = [sum(row["answer_mask"]) - 1 for row in rows]
    assert kept == [6, 6]
    assert windows(tokenizer, examples(("a", " ".join(WORDS[:6]))), 10, 100)[0]["labels"] == [0, 0]


@pytest.mark.parametrize(
    ("first", "labels"), [(4, [[0, 0], [5, 6]]), (2, [[6, 7], [0, 0]]), (3, [[7, 8], [4, 5]])]
)
def test_a_window_with_half_the_answer_has_none(tokenizer, first, labels) -> None:
    """Of eight words the windows have words 0 to 4 and 3 to 7."""
    answer = " ".join(WORDS[first : first + 2])
    rows = windows(tokenizer, examples(("a sharp", " ".join(WORDS[:8]), answer)), 10, 3)
    assert [row["labels"] for row in rows] == labels


def test_characters_are_those_of_the_passage_whatever_its_spaces_and_case(tokenizer) -> None:
    passage = "  The FILM\u00a0was\n  not very  Good!"
    (row,) = windows(tokenizer, examples(("a", passage, "not very")), 20)
    pieces = [
        passage[begin:end]
        for begin, end, kept in zip(
            row["char_begin"], row["char_end"], row["answer_mask"], strict=True
        )
        if kept
    ]
    assert pieces == ["", "The", "FILM", "was", "not", "very", "Good", "!"]
    first, last = row["labels"]
    assert passage[row["char_begin"][first] : row["char_end"][last]] == "not very"


def test_spaces_around_an_answer_do_not_move_it_and_part_of_a_word_is_the_word(tokenizer) -> None:
    rows = windows(tokenizer, examples(("a", "the film was", " film "), ("a", "dull", "ul")), 20)
    assert [row["labels"] for row in rows] == [[4, 4], [3, 3]]


def test_the_first_of_several_answers_is_the_label(tokenizer) -> None:
    (row,) = windows(tokenizer, examples(("a", "the film was dull", "dull", "film")), 20)
    assert row["labels"] == [6, 6]


def test_a_long_question_is_cut_and_spaces_around_it_do_not_count(tokenizer) -> None:
    data = examples(("   is the film very dull", "good plot", "plot"))
    (row,) = windows(tokenizer, data, 20, max_question_length=3)
    assert row["input_ids"] == tokenizer("is the film", "good plot", padding=False)["input_ids"]


def test_chunks_do_not_show(tokenizer, monkeypatch) -> None:
    data = examples(*[("a", " ".join(WORDS[k : k + 8]), WORDS[k]) for k in range(4)])
    whole = windows(tokenizer, data)
    monkeypatch.setattr("lightning_kd.data.windows._CHUNK", 3)
    assert windows(tokenizer, data) == whole
    assert {row["question"] for row in whole} == {0, 1, 2, 3}


def test_a_tokenizer_without_cls_is_refused(tokenizer) -> None:
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.BertProcessing(("a", 14), ("a", 14))
    with pytest.raises(ValueError, match=r"begin with a \[CLS\] token.*use a BERT, RoBERTa"):
        Windows(tokenizer, 20, 2, 3)


def test_no_room_for_a_passage_is_an_error(tokenizer) -> None:
    with pytest.raises(ValueError, match=r"max_length=6 leaves no room .* it must be at least 7"):
        Windows(tokenizer, 6, 2, 3)


def test_an_answer_that_a_transform_moved_is_an_error(tokenizer) -> None:
    data = examples(("a", "the film", "film"))
    moved = data.map(lambda row: {"sentence2": "a " + row["sentence2"]})
    with pytest.raises(ValueError, match=r"question q0: the answer 'film' is not at answer_start"):
        windows(tokenizer, moved)
