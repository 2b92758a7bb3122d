"""What one pass over an evaluation set collects."""

import pytest
import torch

from lightning_kd.evaluation import Evaluation
from lightning_kd.tasks import Prediction
from tests import tiny


def test_metrics_answers_and_seconds_add_up_over_batches() -> None:
    evaluation = Evaluation(tiny.TASKS["classification"])
    logits = torch.randn(10, 2)
    labels = torch.randint(2, (10,))
    for part, seconds in ((slice(0, 7), 0.5), (slice(7, 10), 0.25)):
        evaluation.update(Prediction(logits[part]), {"labels": labels[part]}, seconds)
    expected = (logits.argmax(-1) == labels).double().mean().item()
    assert evaluation.values == {}
    assert evaluation.compute() == {"accuracy": pytest.approx(expected)}
    assert evaluation.values == {"accuracy": pytest.approx(expected)}
    assert evaluation.seconds == 0.75
    answers, truths = evaluation.collected()
    assert torch.equal(answers, logits.argmax(-1))
    assert torch.equal(truths, labels)


def test_a_single_example_is_collected_as_a_vector() -> None:
    evaluation = Evaluation(tiny.TASKS["regression"])
    evaluation.update(Prediction(torch.tensor([[2.5]])), {"labels": torch.tensor([3.0])}, 0.0)
    answers, truths = evaluation.collected()
    assert answers.tolist() == [2.5]
    assert truths.tolist() == [3.0]


def test_nothing_of_it_is_a_weight_or_in_a_state_dict() -> None:
    evaluation = Evaluation(tiny.TASKS["classification"])
    evaluation.update(Prediction(torch.randn(3, 2)), {"labels": torch.zeros(3)}, 0.0)
    assert not list(evaluation.parameters())
    assert not evaluation.state_dict()


class _Key:
    """Scores the sum of each pair of rows; the second metric is only of even questions."""

    def record(self, prediction, batch):
        return prediction.logits

    def score(self, idx, records):
        sums = torch.zeros(3).index_add(0, idx // 2, records.sum(-1))
        return {"f1": sums, "even_f1": sums.where(torch.arange(3) % 2 == 0, torch.nan)}


def test_a_key_scores_records_in_any_order_instead_of_labels() -> None:
    key = _Key()
    evaluation = Evaluation(tiny.TASKS["classification"], key)
    records = torch.randn(6, 2)
    for rows in (torch.tensor([5, 0, 3]), torch.tensor([1, 2, 4])):
        batch = {"labels": torch.zeros(3), "idx": rows}
        evaluation.update(Prediction(records[rows]), batch, 0.5)
    sums = records.sum(-1).view(3, 2).sum(1)
    expected = {"f1": sums.mean().item(), "even_f1": sums[[0, 2]].mean().item()}
    assert evaluation.compute() == pytest.approx(expected)
    torch.testing.assert_close(evaluation.scores["f1"], sums)
    assert evaluation.seconds == 1.0
    assert [len(part) for part in evaluation.collected()] == [0, 0]


def test_answers_are_chosen_where_the_mask_allows() -> None:
    task, batch = tiny.TASKS["spans"], tiny.batch(3, tiny.TASKS["spans"])
    evaluation = Evaluation(task)
    logits = torch.zeros(3, 2, 8)
    logits[:, :, 1] = 50.0  # the question
    evaluation.update(Prediction(logits), batch, 0.0)
    answers, labels = evaluation.collected()
    assert torch.equal(answers, task.answers(Prediction(logits), batch).float())
    assert not (answers == 1).any()
    assert torch.equal(labels, batch["labels"].float())


def test_a_key_is_given_a_single_row_as_a_row() -> None:
    evaluation = Evaluation(tiny.TASKS["classification"], _Key())
    batch = {"labels": torch.zeros(1), "idx": torch.tensor([4])}
    evaluation.update(Prediction(torch.tensor([[1.0, 2.0]])), batch, 0.0)
    assert evaluation.compute()["even_f1"] == 1.5  # questions 0 and 2
