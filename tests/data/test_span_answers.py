"""From windows to a question's answer, and its official score, by hand."""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torchmetrics.text import SQuAD as SQuADMetric

from lightning_kd.data.span_answers import SpanKey
from lightning_kd.tasks import Prediction, SpanQA
from lightning_kd.tasks.spans import METRICS

PASSAGE = "The film was dull, not good"
TOKENS = [(0, 3), (4, 8), (9, 12), (13, 17), (17, 18), (19, 22), (23, 27)]


def window(question, first, last):
    """[CLS] question [SEP] tokens ``first`` to ``last`` [SEP]."""
    spans = [(0, 0)] * 3 + TOKENS[first : last + 1] + [(0, 0)]
    begin, end = np.array(spans).T
    return {"question": question, "char_begin": begin, "char_end": end}


WINDOWS = [window(0, 0, 3), window(0, 2, 6), window(1, 0, 6)]


def key(task="squad", answers=(["dull"], ["film"]), **options) -> SpanKey:
    questions = [
        {"sentence2": PASSAGE, "label": {"text": list(texts), "answer_start": [0] * len(texts)}}
        for texts in answers
    ]
    spec = SpanQA(task, METRICS)
    return SpanKey(spec, cast("Any", questions), cast("Any", WINDOWS), **options)


def rows(*windows):
    """``(null score, (first, last, score), ...)`` of each window."""
    width = max(len(spans) for _, *spans in windows)
    none = (0, 0, -math.inf)
    return torch.tensor([
        [(0, 0, null), *spans, *[none] * (width - len(spans))] for null, *spans in windows
    ])  # fmt: skip


def test_the_best_span_of_all_windows_is_the_answer_in_the_passages_own_characters() -> None:
    records = rows((0, (4, 5, 1.0)), (0, (4, 7, 3.0), (4, 4, 2.0)))
    (answer,) = key().answers(torch.tensor([0, 1]), records).values()
    assert answer.text == "dull, not good"
    assert answer.choices == (("dull, not good", 3.0), ("dull", 2.0), ("film was", 1.0))


def test_the_order_of_windows_does_not_matter_also_for_equal_scores() -> None:
    records = rows((0, (4, 5, 1.0)), (0, (4, 7, 1.0)), (0, (4, 4, 1.0)))
    found = [key().answers(idx, records[idx]) for idx in map(torch.tensor, ([0, 1, 2], [2, 1, 0]))]
    assert found[0] == found[1]
    assert list(found[0]) == [0, 1]
    assert found[0][0].text == "film was"


def test_a_text_that_two_windows_find_is_listed_once_with_its_best_score() -> None:
    records = rows((0, (6, 6, 1.0)), (0, (4, 4, 5.0)))
    (answer,) = key().answers(torch.tensor([0, 1]), records).values()
    assert answer.choices == (("dull", 5.0),)


@pytest.mark.parametrize(
    ("threshold", "text"), [(None, "dull"), (0.0, ""), (1.9, ""), (2.0, "dull"), (9.0, "dull")]
)
def test_no_answer_is_given_above_the_threshold_by_the_window_where_it_scores_least(
    threshold, text
) -> None:
    records = rows((9.0, (6, 6, 1.0)), (4.0, (4, 4, 2.0)))
    (answer,) = key(threshold=threshold).answers(torch.tensor([0, 1]), records).values()
    assert answer.text == text
    assert answer.no_answer == 2.0
    assert (("", 4.0) in answer.choices) == (threshold is not None)


def test_a_tuned_threshold_is_that_of_the_best_f1_and_counts_at_once() -> None:
    """Margins 3 (no answer is right) and 1 (the span is): with 1 both are right."""
    records = rows((4.0, (4, 4, 1.0)), (9.0, (6, 6, 1.0)), (2.0, (3, 4, 1.0)))
    taken: list[float] = []
    given = key(answers=([], ["the film"]), threshold=0.0, tuned=taken.append)
    scores = given.score(torch.arange(3), records)
    assert taken == [1.0]
    assert given.threshold == 1.0
    assert scores["f1"].tolist() == [1, 1]
    fixed = key(answers=([], ["the film"]), threshold=0.0).score(torch.arange(3), records)
    assert fixed["f1"].tolist() == [1, 0]


def test_record_keeps_the_null_score_and_the_best_allowed_spans() -> None:
    logits = torch.zeros(1, 2, 6)
    logits[0, 0, 1] = logits[0, 1, 5] = 99.0  # question and padding
    logits[0, 0, 3], logits[0, 1, 4], logits[0, :, 0] = 5.0, 4.0, 1.5
    mask = torch.tensor([[True, False, False, True, True, False]])
    found = key(n_best=2).record(Prediction(logits), {"answer_mask": mask})
    assert found.tolist() == [[[0, 0, 3.0], [3, 4, 9.0], [3, 3, 5.0]]]
    short = key(n_best=2, max_answer_length=1).record(Prediction(logits), {"answer_mask": mask})
    assert short.tolist() == [[[0, 0, 3.0], [3, 3, 5.0], [4, 4, 4.0]]]


def test_scores_by_hand_articles_case_and_punctuation_do_not_count() -> None:
    records = rows((0, (3, 4, 1.0)), (0, (3, 3, 0.5)), (0, (3, 5, 2.0)))
    scores = key(answers=(["Film!", "x"], ["film"])).score(torch.arange(3), records)
    # "The film" of "Film!"; "The film was" of "film": one word of two and of one
    assert scores["exact_match"].tolist() == [1, 0]
    assert scores["f1"].tolist() == pytest.approx([1, 2 / 3])
    assert scores["has_answer_f1"].tolist() == pytest.approx([1, 2 / 3])
    assert scores["no_answer_f1"].isnan().all()


def test_without_true_answer_only_no_answer_is_right() -> None:
    records = rows((9, (3, 3, 1.0)), (9, (3, 3, 1.0)), (0, (4, 4, 2.0)))
    scores = key(answers=([], []), threshold=0.0).score(torch.arange(3), records)
    assert scores["no_answer_f1"].tolist() == scores["exact_match"].tolist() == [1, 0]
    assert scores["has_answer_f1"].isnan().all()


def test_the_mean_is_the_metric_of_torchmetrics_in_fractions() -> None:
    records = rows((0, (3, 4, 1.0)), (0, (3, 3, 0.5)), (0, (3, 5, 2.0)))
    truths = (["the film was"], ["was dull", "film"])
    given = key(answers=truths)
    scores = given.score(torch.arange(3), records)
    metric = SQuADMetric()
    for n, answer in given.answers(torch.arange(3), records).items():
        target: Any = {"answers": {"text": list(truths[n]), "answer_start": [0]}, "id": "x"}
        metric.update([{"prediction_text": answer.text, "id": "x"}], [target])
    for name, value in metric.compute().items():
        assert 100 * scores[name].mean().item() == pytest.approx(value.item(), abs=1e-4)


def test_a_diverged_model_is_scored_not_crashed() -> None:
    mask = torch.ones(1, 8, dtype=torch.bool)
    record = key().record(Prediction(torch.full((1, 2, 8), math.nan)), {"answer_mask": mask})
    assert key().score(torch.tensor([0]), record)["f1"].shape == (1,)


def test_only_questions_with_a_window_are_scored() -> None:
    assert key().score(torch.tensor([2]), rows((0, (4, 4, 1.0))))["f1"].tolist() == [1.0]
