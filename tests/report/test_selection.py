"""Standard errors against closed forms and scipy; the choice of a size against worked cases."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics.functional.classification import binary_f1_score

from lightning_kd.report import Result, Summary, choose_sizes, standard_error
from lightning_kd.report.selection import explain


def accuracy(answers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (answers == labels).float().mean()


def with_accuracy(right: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.ones(count, dtype=torch.int64)
    return (torch.arange(count) < right).long(), labels


def sweep(
    values: dict[int, float], error: float | None = None, split: str = "validation"
) -> list[Result]:
    return [Result(r, split, "accuracy", v, 10 * r, None, error) for r, v in values.items()]


def choose(values: dict[int, float], error: float | None = None) -> list[int]:
    return choose_sizes(sweep(values, error), "validation", "accuracy")


@pytest.mark.parametrize(("right", "count"), [(700, 1000), (80, 100), (39_000, 40_000)])
def test_standard_error_of_accuracy_is_the_binomial_one(right, count):
    p = right / count
    # 2000 resamples leave a relative error of 1 / sqrt(2 * 2000) = 1.6 %; five of those are 8 %
    resamples = 2000 if count <= 1000 else 200
    tolerance = 5 / math.sqrt(2 * resamples)
    found = standard_error(accuracy, *with_accuracy(right, count), resamples=resamples)
    assert found == pytest.approx(math.sqrt(p * (1 - p) / count), rel=tolerance)


def test_standard_error_of_f1_agrees_with_scipy():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 300)
    answers = np.where(generator.random(300) < 0.75, labels, 1 - labels)

    def f1(answers, labels, axis=-1):
        hits = (answers * labels).sum(axis)
        return 2 * hits / (answers.sum(axis) + labels.sum(axis))

    reference = stats.bootstrap(
        (answers, labels), f1, paired=True, n_resamples=2000, method="basic", rng=1
    ).standard_error
    ours = standard_error(
        binary_f1_score, torch.tensor(answers), torch.tensor(labels), resamples=2000
    )
    assert ours == pytest.approx(reference, rel=0.1)


def test_standard_error_depends_on_the_seed_only():
    data = with_accuracy(70, 100)
    state = torch.get_rng_state()
    first = standard_error(accuracy, *data, seed=3)
    torch.rand(5)
    assert standard_error(accuracy, *data, seed=3) == first
    assert standard_error(accuracy, *data, seed=4) != first
    torch.set_rng_state(state)
    standard_error(accuracy, *data)
    assert torch.equal(torch.get_rng_state(), state)


def test_standard_error_draws_answer_and_label_together():
    labels = torch.arange(50)  # all right: 1 on every resample only if the pairs stay together
    assert standard_error(accuracy, labels, labels) == 0.0


def test_standard_error_leaves_out_resamples_without_a_value():
    answers, labels = with_accuracy(1, 2)

    def defined_with_both(answers, labels):
        value = answers.float().mean()
        return value if 0 < value < 1 else torch.tensor(math.nan)

    assert standard_error(defined_with_both, answers, labels) == 0.0
    assert math.isnan(standard_error(lambda a, b: (a + b).sum() / 0, answers, labels))


def test_standard_error_refuses_what_it_cannot_resample():
    with pytest.raises(ValueError, match="got 3 answers and 2 labels"):
        standard_error(accuracy, torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="at least one; got 0 answers"):
        standard_error(accuracy, torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="resamples must be at least 2, got 1"):
        standard_error(accuracy, torch.zeros(3), torch.zeros(3), resamples=1)


def test_choose_takes_the_best_and_the_smallest_within_its_standard_error():
    values = {1: 0.70, 2: 0.74, 4: 0.76, 8: 0.75}
    assert choose(values, error=0.03) == [2, 4]  # 0.74 >= 0.76 - 0.03 > 0.70
    assert choose(values, error=0.07) == [1, 4]
    assert choose(values, error=0.01) == [4]
    assert choose(dict(reversed(values.items())), error=0.03) == [2, 4]


def test_choose_uses_the_standard_error_of_the_best_only():
    results = [
        Result(1, "validation", "accuracy", 0.70, 0, standard_error=0.5),
        Result(2, "validation", "accuracy", 0.80, 0, standard_error=0.05),
    ]
    assert choose_sizes(results, "validation", "accuracy") == [2]


def test_choose_among_equals_takes_the_smallest():
    assert choose({8: 0.5, 2: 0.5, 4: 0.5}, error=0.1) == [2]
    assert choose({8: 0.5, 2: 0.5, 1: 0.4}) == [2]


def test_choose_of_one_size_or_without_standard_errors():
    assert choose({4: 0.5}, error=0.1) == [4]
    assert choose({1: 0.79, 2: 0.8}) == [2]
    assert choose({1: 0.79, 2: 0.8}, error=math.nan) == [2]


def test_choose_never_takes_a_diverged_size():
    assert choose({1: math.nan, 2: 0.5, 4: math.inf, 8: 0.6}, error=0.2) == [2, 8]
    assert choose({1: math.nan, 2: math.nan}) == []


def test_choose_looks_at_its_split_and_metric_only():
    other = [*sweep({1: 0.99}, split="test"), Result(1, "validation", "f1", 0.99, 0)]
    results = other + sweep({1: 0.5, 2: 0.6})
    assert choose_sizes(results, "validation", "accuracy") == [2]
    with pytest.raises(ValueError, match=r"no result of f1 on test .* accuracy on test"):
        choose_sizes(results, "test", "f1")


def test_choose_has_nothing_to_choose_for_a_method_without_sizes():
    assert choose_sizes([Result(None, "dev", "accuracy", 0.5, 1)], "dev", "accuracy") == []


@pytest.mark.parametrize(
    ("error", "chosen", "sentence"),
    [
        (0.03, [2, 4], "rank 2 is the smallest within one standard error (0.0300) of it."),
        (0.01, [4], "no smaller rank is within one standard error (0.0100) of it."),
        (None, [4], "Rank 4 is best by accuracy on validation; standard errors were not computed."),
        (0.03, [1, 2, 8], "Ranks 1, 2 and 8 as asked for."),
        (0.03, [8], "Rank 8 as asked for."),
        (0.03, [], "No rank was chosen."),
    ],
)
def test_the_explanation_names_the_rule_that_chose(error, chosen, sentence):
    results = sweep({1: 0.70, 2: 0.74, 4: 0.76, 8: 0.75}, error)
    summary = Summary("DyLoRA", "glue", "sst2", "m", 0, 1.0, {}, "", tuple(results))
    assert explain(summary, chosen).endswith(sentence)
