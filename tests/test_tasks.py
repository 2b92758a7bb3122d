"""Losses against closed forms, metrics against naive loops, names against the benchmarks."""

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.data import GLUE
from lightning_kd.functional import kd_loss
from lightning_kd.tasks import Classification, Prediction, Regression, Task, task_named
from tests import tiny

SST2 = Classification("sst2", ("negative", "positive"), ("accuracy", "f1", "matthews"))
MNLI = Classification("mnli", ("a", "b", "c"), ("accuracy", "matthews"), ("", "mismatched"))
STSB = Regression("stsb", 0.0, 5.0)


def labels(*values: float) -> dict[str, Tensor]:
    return {"labels": torch.tensor(values)}


def test_cross_entropy_by_hand_one_value_per_example() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0], [50.0, 0.0, 0.0]])
    loss = MNLI.hard_loss(Prediction(logits), labels(1, 0, 0))
    torch.testing.assert_close(loss, torch.tensor([math.log(3), math.log(2), 0.0]))


def test_cross_entropy_of_half_precision_logits_is_computed_in_full() -> None:
    loss = SST2.hard_loss(Prediction(torch.randn(3, 2).bfloat16()), labels(1, 0, 1))
    assert loss.dtype == torch.float32


def test_a_classification_s_soft_loss_is_hinton_s() -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    loss = MNLI.soft_loss(Prediction(student), Prediction(teacher), {}, 2.0)
    assert torch.equal(loss, kd_loss(student, teacher, 2.0))


def test_squared_errors_by_hand_also_where_labels_are_whole_numbers() -> None:
    prediction = Prediction(torch.tensor([[1.5], [6.0]]))
    torch.testing.assert_close(
        STSB.hard_loss(prediction, labels(1.0, 5.0)), torch.tensor([0.25, 1.0])
    )
    torch.testing.assert_close(STSB.hard_loss(prediction, labels(1, 5)), torch.tensor([0.25, 1.0]))
    teacher = Prediction(torch.tensor([[0.0], [4.0]]))
    for temperature in (1.0, 5.0):  # no meaning for a regression
        soft = STSB.soft_loss(prediction, teacher, {}, temperature)
        torch.testing.assert_close(soft, torch.tensor([2.25, 4.0]))


def test_answers_are_the_class_of_the_highest_logit_or_the_number_itself() -> None:
    assert MNLI.decode(Prediction(torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]))).tolist() == [
        1,
        0,
    ]
    assert STSB.decode(Prediction(torch.tensor([[7.5], [-1.0]]))).tolist() == [7.5, -1.0]


def test_a_value_per_example_is_the_mean_over_its_sites() -> None:
    values = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    assert SST2.per_example(values, {}).tolist() == [2, 5]
    assert SST2.per_example(values[0], {}).tolist() == [1, 3]


def counts(answers: list[int], truths: list[int]) -> tuple[int, int, int, int]:
    pairs = list(zip(answers, truths, strict=True))
    return (
        pairs.count((1, 1)),
        pairs.count((1, 0)),
        pairs.count((0, 1)),
        pairs.count((0, 0)),
    )


def test_classification_metrics_are_those_of_naive_counting() -> None:
    answers = torch.randint(2, (60,)).tolist()
    truths = [a if torch.rand(()) < 0.7 else 1 - a for a in answers]
    tp, fp, fn, tn = counts(answers, truths)
    metrics = SST2.metrics()
    for part in (slice(0, 25), slice(25, 60)):  # batches of unequal sizes
        metrics.update(torch.tensor(answers[part]), torch.tensor(truths[part]))
    values = {name: value.item() for name, value in metrics.compute().items()}
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert values == {
        "accuracy": pytest.approx((tp + tn) / 60),
        "f1": pytest.approx(2 * tp / (2 * tp + fp + fn)),
        "matthews": pytest.approx((tp * tn - fp * fn) / root, abs=1e-6),
    }


def test_accuracy_of_three_unequal_classes_counts_examples_not_classes() -> None:
    metrics = MNLI.metrics()
    metrics.update(torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 0, 0, 2, 1]))
    assert metrics.compute()["accuracy"].item() == pytest.approx(3 / 5)


@pytest.mark.filterwarnings("ignore:The variance of predictions or target")
def test_constant_answers_have_no_correlation_to_report_as_a_number_above_zero() -> None:
    classes = SST2.metrics()
    classes.update(torch.ones(4, dtype=torch.int64), torch.tensor([0, 1, 0, 1]))
    assert classes.compute()["matthews"].item() == 0
    scores = STSB.metrics()
    scores.update(torch.ones(4), torch.arange(4.0))
    assert not scores.compute()["pearson"].item() > 0


def naive_pearson(x: Tensor, y: Tensor) -> float:
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


def ranks(x: Tensor) -> Tensor:
    """Average ranks, by counting."""
    return torch.stack([(x < value).sum() + ((x == value).sum() - 1) / 2 for value in x])


def test_regression_metrics_are_those_of_naive_formulas_with_ties() -> None:
    truths = torch.randint(0, 6, (50,)) * 1.0
    answers = truths + 2 * torch.randn(50)
    answers[:10] = answers[10]
    metrics = STSB.metrics()
    for part in (slice(0, 20), slice(20, 50)):
        metrics.update(answers[part], truths[part])
    values = metrics.compute()
    assert set(values) == {"pearson", "spearman"}
    assert values["pearson"].item() == pytest.approx(naive_pearson(answers, truths), abs=1e-5)
    rank_correlation = naive_pearson(ranks(answers), ranks(truths))
    assert values["spearman"].item() == pytest.approx(rank_correlation, abs=1e-5)


def test_metrics_are_fresh_each_time() -> None:
    first = SST2.metrics()
    first.update(torch.tensor([1]), torch.tensor([1]))
    second = SST2.metrics()
    second.update(torch.tensor([1]), torch.tensor([0]))
    assert second.compute()["accuracy"].item() == 0


def test_the_first_metric_is_the_one_to_monitor() -> None:
    assert SST2.monitor == "accuracy"
    assert STSB.monitor == "pearson"
    assert MNLI.eval_sets == ("", "mismatched")
    assert (SST2.num_labels, MNLI.num_labels, STSB.num_labels) == (2, 3, 1)


def test_predict_gives_the_model_its_inputs_and_nothing_else() -> None:
    class Echo(nn.Module):
        def forward(self, **inputs: object) -> object:
            self.seen = inputs
            return type("Output", (), {"logits": torch.ones(2, 1), "hidden_states": (1, 2)})

    model, batch = Echo(), {**labels(0, 1), "idx": torch.arange(2), "input_ids": torch.ones(2, 3)}
    assert STSB.predict(model, batch).hidden_states is None
    assert set(model.seen) == {"input_ids"}
    model_says = tiny.model()
    batch = tiny.batch()
    prediction = SST2.predict(model_says, batch, hidden_states=True)
    assert prediction.logits.shape == (4, 2)
    assert prediction.hidden_states is not None
    assert [h.shape for h in prediction.hidden_states] == [(4, 8, 8)] * 3  # embeddings, two layers
    unlabelled = {k: v for k, v in batch.items() if k != "labels"}
    assert torch.equal(SST2.predict(model_says, unlabelled).logits, prediction.logits)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (SST2, "Classification has no metric 'bleu'; choose from accuracy, f1, matthews"),
        (STSB, "Regression has no metric 'bleu'; choose from pearson, spearman"),
    ],
)
def test_an_unknown_metric_is_answered_with_the_known(task, message) -> None:
    with pytest.raises(ValueError, match=message):
        task._metric("bleu")


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1)])
def test_a_range_must_be_one(low, high) -> None:
    with pytest.raises(ValueError, match=f"low must be below high, got low={low} and high={high}"):
        Regression("stsb", float(low), float(high))


@pytest.mark.parametrize("name", GLUE.tasks)
def test_a_task_is_found_by_the_name_its_benchmark_gives_it(name) -> None:
    found: Task = task_named(name)
    assert found is GLUE.tasks[name]
    assert found.name == name


def test_an_unknown_task_is_answered_with_all_names() -> None:
    with pytest.raises(
        ValueError, match=r"no task 'sst-2'; choose from alpaca, .*cola, .*mrpc, .*wnli"
    ):
        task_named("sst-2")
