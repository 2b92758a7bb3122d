"""Whether texts are right: TriviaQA's rule, letters, and final numbers."""

import importlib.util
from collections import Counter

import pytest
import torch

from lightning_kd import metrics
from lightning_kd.metrics import SCORERS, base_and_part, check_metric, normalized
from lightning_kd.metrics.numbers import final_answer, last_number
from lightning_kd.metrics.texts import exact_match, normalized_match, word_f1

# Pairs of alias and normalized alias that the benchmark's authors published.
OFFICIAL = [
    ("Sunset Blvd.", "sunset blvd"),
    ("West Sunset Boulevard", "west sunset boulevard"),
]
RULES = [
    ("The A-Team", "team"),
    ("Theatre", "theatre"),
    ("Rock'n'Roll", "rock n roll"),
    ("Tom \u2018n\u2019 Jerry\u00b4s `x`", "tom n jerry s x"),
    ("snake_case  an\tAnt", "snake case ant"),
    ("É.T.", "é t"),
    ("...", ""),
]


@pytest.mark.parametrize(("text", "expected"), OFFICIAL + RULES)
def test_normalization(text, expected) -> None:
    assert normalized(text) == expected


def test_letters_count_unless_they_are_normalized() -> None:
    texts, truths = ["brunei", "Brunei "], [["Borneo", "Brunei"]] * 2
    assert exact_match(texts, truths).tolist() == [0, 1]
    assert normalized_match(texts, truths).tolist() == [1, 1]


def test_f1_by_precision_and_recall_of_the_best_truth() -> None:
    texts = ["the red fox fox", "blue", "a", ""]
    truths = [["fox fox", "red dog"], ["red"], ["the"], ["x"]]

    def f1(text: str, truth: str) -> float:
        ours, theirs = Counter(text.split()), Counter(truth.split())
        right = sum(min(ours[w], theirs[w]) for w in ours)
        if not right:
            return 0.0
        precision, recall = right / ours.total(), right / theirs.total()
        return 2 * precision * recall / (precision + recall)

    # by hand: "red fox fox" against "fox fox": 2 of 3 and 2 of 2
    assert f1("red fox fox", "fox fox") == pytest.approx(0.8)
    expected = [0.8, 0.0, 0.0, 0.0]  # texts of articles alone have no word in common
    torch.testing.assert_close(word_f1(texts, truths), torch.tensor(expected))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#### 42", 42),
        ("a\n#### -1,234,567.", -1234567),
        ("#### $18.50 an hour", 18.5),
        ("#### -$3", -3),
        ("#### 7.0", 7),
        ("#### .5", 0.5),
        ("#### 12 apples, 3 pears", 12),
        ("#### 1 #### 2", 1),
        ("#### nothing\n5", None),
        ("5", None),
        ("", None),
    ],
)
def test_final_answers(text, value) -> None:
    found = final_answer(text)
    assert (None if found is None else float(found)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("It is 3, not 1,000.", 1000), ("48/2 = <<48/2=24>>24.", 24), ("-5", -5), ("none", None)],
)
def test_last_numbers(text, value) -> None:
    found = last_number(text)
    assert (None if found is None else float(found)) == value


def test_numbers_are_compared_as_numbers() -> None:
    truths = [["6*7 = 42\n#### 42"]] * 4
    texts = ["#### 42.00 dollars", "so 42", "#### 43 or 42", "the answer: #### 4 2"]
    assert SCORERS["final_answer_match"](texts, truths).tolist() == [1, 0, 0, 0]
    assert SCORERS["last_number_match"](texts, truths).tolist() == [1, 1, 1, 0]


def test_a_metric_that_cannot_be_had_says_why(monkeypatch) -> None:
    for name in (*SCORERS, "bleu_unseen", "ter_seen"):
        check_metric(name)
    with pytest.raises(ValueError, match="METEOR needs WordNet"):
        check_metric("meteor")
    with pytest.raises(ValueError, match=r"there is no metric 'blue'; choose from bleu"):
        check_metric("blue")
    assert base_and_part("exact_match") == ("exact_match", "")
    monkeypatch.setattr(metrics, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"rouge_l needs the package rouge-score; .*\[llm\]"):
        check_metric("rouge_l")
    check_metric("cider")
    assert importlib.util.find_spec("sacrebleu")
