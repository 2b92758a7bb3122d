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
