"""The tests of a few seeds against the numbers of check B11, scipy and enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lightning_kd.comparison import compare
from lightning_kd.statistics import (
    bootstrap_interval,
    equivalence_test,
    holm,
    label_permutation_test,
    mean_sd,
    minimal_detectable_effect,
    paired_interval,
    paired_t_test,
    sign_flip_test,
    welch_t_test,
)

A = (70.4, 71.5, 69.7, 72.2, 71.2)
B = (71.1, 71.8, 70.0, 71.5, 72.6)
STAIRS = (60.0, 61.0, 62.0, 63.0, 64.0)
HIGHER = tuple(value + 1 for value in STAIRS)


def near(value):
    return pytest.approx(value, abs=5e-5)


def test_b11_means_and_deviations() -> None:
    assert mean_sd(A) == (near(71.0), near(0.9721))
    assert mean_sd(B) == (near(71.4), near(0.9566))


def test_b11_tests() -> None:
    assert welch_t_test(A, B) == (near(-0.65583), near(0.5303))
    assert paired_t_test(A, B) == (near(-1.17444), near(0.3054))
    assert sign_flip_test(A, B) == 0.375
    assert label_permutation_test(A, B) == near(0.5635)
    assert equivalence_test(A, B, 1.0) == near(0.1770)
    assert equivalence_test(A, B, 2.0) == near(0.0153)


def test_b11_a_constant_difference_is_undefined_and_not_zero() -> None:
    assert welch_t_test(STAIRS, HIGHER) == (near(-1.0), near(0.34659))
    assert paired_t_test(STAIRS, HIGHER) is None
    in_tenths = [value / 10 for value in STAIRS]  # 6.1 + 0.1 is not 6.2 to the last bit
    assert paired_t_test(in_tenths, [value + 0.1 for value in in_tenths]) is None
    assert compare(STAIRS, HIGHER).paired is None


def test_a_paired_interval_is_where_the_t_test_does_not_reject() -> None:
    mean, low, high = paired_interval(A, B)
    assert mean == near(-0.4)
    # the t-test of differences shifted by an end of the interval is just at its level
    for end in (low, high):
        shifted = paired_t_test([a - end for a in A], B)
        assert shifted is not None
        assert shifted[1] == near(0.05)
    assert paired_interval(A, B, confidence=0.5)[1] > low
    assert paired_interval(STAIRS, HIGHER) == (-1.0, -1.0, -1.0)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        paired_interval(A, B, confidence=95)


def test_arms_that_do_not_vary_are_undefined() -> None:
    same, other = [50.0] * 3, [51.0] * 3
    assert all(map(math.isnan, welch_t_test(same, other)))
    assert math.isnan(equivalence_test(same, other))
    assert sign_flip_test(same, other) == 2 / 2**3
    assert compare(same, other).verdict() == "undecided"


def test_one_arm_may_be_constant() -> None:
    statistic, p = welch_t_test([50.0] * 5, A)
    expected = stats.ttest_1samp(A, 50.0)  # an arm without variance is a number
    assert statistic == near(-expected.statistic)
    assert p == pytest.approx(expected.pvalue)
    assert equivalence_test([71.0] * 5, A, 3.0) < 0.01


def test_exact_tests_agree_with_scipys() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=6).tolist(), generator.normal(0.8, size=6).tolist()

    def difference(x, y, axis):
        return np.mean(x, axis=axis) - np.mean(y, axis=axis)

    options = {"n_resamples": np.inf, "vectorized": True}
    pairs = stats.permutation_test(
        (first, second), difference, permutation_type="samples", **options
    )
    shares = stats.permutation_test(
        (first, second), difference, permutation_type="independent", **options
    )
    assert sign_flip_test(first, second) == pytest.approx(pairs.pvalue)
    assert label_permutation_test(first, second) == pytest.approx(shares.pvalue)


def test_exact_tests_reach_their_lowest_value_and_no_less() -> None:
    low, high = [1.0, 2.0, 3.0, 4.0, 5.0], [11.0, 12.5, 13.0, 14.5, 15.0]
    assert sign_flip_test(low, high) == 0.0625
    assert label_permutation_test(low, high) == pytest.approx(2 / 252)
    assert label_permutation_test(low, low) == 1.0


def test_arms_of_unequal_size_can_be_permuted() -> None:
    found = label_permutation_test([1.0, 2.0], [2.5, 4.0, 7.0])
    runs, observed = [1.0, 2.0, 2.5, 4.0, 7.0], 1.5 - 4.5
    means = []
    for chosen in itertools.combinations(range(5), 2):
        rest = [runs[i] for i in range(5) if i not in chosen]
        means.append(sum(runs[i] for i in chosen) / 2 - sum(rest) / 3)
    assert found == sum(abs(m) >= abs(observed) - 1e-9 for m in means) / 10


def test_equivalence_is_the_larger_of_two_one_sided_p_values() -> None:
    freedom, error = 7.998, 0.4 / 0.65583  # from the Welch test above
    expected = stats.t.sf((1.0 - 0.4) / error, freedom)
    assert equivalence_test(A, B) == pytest.approx(expected, abs=1e-4)
    assert equivalence_test(A, B) == pytest.approx(equivalence_test(B, A))


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with_hole = holm([0.01, math.nan, 0.02])
    assert with_hole[0] == 0.02
    assert math.isnan(with_hole[1])
    assert holm([]) == []


def test_bootstrap_interval_of_one_task_is_scipys() -> None:
    runs = np.random.default_rng(1).normal(70, 2, size=40)
    reference = stats.bootstrap(
        (runs,), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    found = bootstrap_interval([runs.tolist()])
    assert found == pytest.approx((reference.low, reference.high), abs=0.05)


def test_bootstrap_interval_of_two_tasks_is_narrower_than_of_each() -> None:
    one, two = bootstrap_interval([A]), bootstrap_interval([A, B])
    assert two[1] - two[0] < one[1] - one[0]
    assert bootstrap_interval([A, B]) == two  # a function of the seed


def test_minimal_detectable_effect_is_two_deviations_for_five_runs() -> None:
    assert minimal_detectable_effect(5) == pytest.approx(2.02, abs=0.005)
    large = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * math.sqrt(2 / 1000)
    assert minimal_detectable_effect(1000) == pytest.approx(large, rel=2e-3)


@pytest.mark.slow
def test_the_minimal_detectable_effect_is_detected_as_often_as_promised() -> None:
    generator = np.random.default_rng(0)
    effect = minimal_detectable_effect(5)
    first = generator.normal(size=(20_000, 5))
    second = generator.normal(effect, size=(20_000, 5))
    found = stats.ttest_ind(first, second, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_verdicts() -> None:
    close = [value + 0.01 * i for i, value in enumerate(A)]
    assert compare(A, close, margin=3.0).verdict() == "equivalent"
    assert compare(A, [v + 9 + 0.1 * i for i, v in enumerate(A)]).verdict() == "better"
    assert compare(A, [v - 9 + 0.1 * i for i, v in enumerate(A)]).verdict() == "worse"
    assert compare(A, B).verdict() == "undecided"
    assert compare(A, B).difference == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_sd([1.0]), "at least 2 runs, got 1"),
        (lambda: paired_t_test([1.0, 2.0], [1.0, 2.0, 3.0]), "got 2 and 3 runs"),
        (lambda: equivalence_test(A, B, 0.0), "margin must be positive, got 0.0"),
        (lambda: sign_flip_test([0.0] * 20, [1.0] * 20), "enumerate 1048576 arrangements"),
        (lambda: label_permutation_test([0.0] * 20, [1.0] * 20), "with that many runs use"),
        (lambda: bootstrap_interval([]), "every task needs at least one run"),
        (lambda: bootstrap_interval([A], confidence=95), r"confidence must be in \(0, 1\), got 95"),
        (lambda: minimal_detectable_effect(1), "num_runs must be at least 2, got 1"),
        (lambda: minimal_detectable_effect(5, 0.9, 0.8), "got level=0.9 and power=0.8"),
    ],
)
def test_what_cannot_be_tested_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
