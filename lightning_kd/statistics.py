"""Is one method better than another, the same, or can a handful of seeds not tell?

Tests for two arms of an experiment, each run with a few seeds. "Not significant" with five runs is
no evidence of no effect: that takes an equivalence test, and `minimal_detectable_effect` says what
such an experiment could have seen at all. All p-values are two-sided.
"""

import itertools
import math
import statistics
from collections.abc import Sequence

import numpy as np

__all__ = [
    "bootstrap_interval",
    "equivalence_test",
    "holm",
    "label_permutation_test",
    "mean_sd",
    "minimal_detectable_effect",
    "paired_interval",
    "paired_t_test",
    "sign_flip_test",
    "welch_t_test",
]

Runs = Sequence[float]

MAX_ARRANGEMENTS = 200_000
"""Exact tests enumerate every arrangement; past this many they would take minutes."""


def mean_sd(runs: Runs) -> tuple[float, float]:
    """Mean and sample standard deviation (divisor n - 1) of at least two runs.

    >>> mean_sd([70.4, 71.5, 69.7, 72.2, 71.2])
    (71.0, 0.9721)
    """
    _check_runs(runs)
    return statistics.fmean(runs), statistics.stdev(runs)


def welch_t_test(first: Runs, second: Runs) -> tuple[float, float]:
    """Statistic and p of Welch's t-test for a difference of means (unequal variances).

    Args:
        first: Results of one arm, at least two.
        second: Of the other; the statistic is negative where it is better.

    Returns:
        NaN for both where neither arm varies: the test is undefined.

    Raises:
        ValueError: Fewer than two runs in an arm.

    >>> welch_t_test([60.0, 61.0, 62.0, 63.0, 64.0], [61.0, 62.0, 63.0, 64.0, 65.0])
    (-1.0, 0.34659)
    """
    from scipy import stats

    _check_runs(first, second)
    if _constant(first) and _constant(second):
        return math.nan, math.nan
    found = stats.ttest_ind_from_stats(*_moments(first), *_moments(second), equal_var=False)
    return float(found.statistic), float(found.pvalue)


def paired_t_test(first: Runs, second: Runs) -> tuple[float, float] | None:
    """Statistic and p of the t-test on the differences of runs with the same seed.

    Returns:
        None where all differences are equal: their deviation is 0 and the test is undefined,
        however large they are.

    Raises:
        ValueError: Unequal numbers of runs, or fewer than two.

    >>> paired_t_test([70.4, 71.5, 69.7, 72.2, 71.2], [71.1, 71.8, 70.0, 71.5, 72.6])
    (-1.17444, 0.3054)
    >>> print(paired_t_test([60.0, 61.0], [61.0, 62.0]))
    None
    """
    from scipy import stats

    if _constant(_differences(first, second)):
        return None
    found = stats.ttest_rel(first, second)
    return float(found.statistic), float(found.pvalue)


def paired_interval(
    first: Runs, second: Runs, confidence: float = 0.95
) -> tuple[float, float, float]:
    r"""Mean difference, first minus second, of runs with the same seed, and its t-interval.

    :math:`\bar d \pm t_{n-1} s_d / \sqrt n`; of a constant difference both ends are the mean.

    Raises:
        ValueError: Unequal numbers of runs, fewer than two, or a confidence outside of (0, 1).

    >>> paired_interval([71.0, 72.0, 73.0], [70.0, 70.0, 70.0])
    (2.0, -0.484, 4.484)
    """
    from scipy import stats

    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    mean, deviation, count = _moments(_differences(first, second))
    reach = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * deviation / math.sqrt(count)
    return mean, mean - reach, mean + reach


def sign_flip_test(first: Runs, second: Runs) -> float:
    """Exact p of the paired permutation test: every sign of every difference.

    With n pairs it cannot be below 2 / 2^n, which is 0.0625 for five.

    Raises:
        ValueError: Unequal numbers of runs, fewer than two, or more than 17.

    >>> sign_flip_test([70.4, 71.5, 69.7, 72.2, 71.2], [71.1, 71.8, 70.0, 71.5, 72.6])
    0.375
    """
    differences = np.array(_differences(first, second))
    _check_arrangements(2 ** len(differences))
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    return _share_as_extreme(signs @ differences, float(differences.sum()))


def label_permutation_test(first: Runs, second: Runs) -> float:
    """Exact p of the permutation test: every way to share all runs out to the two arms.

    Five runs against five have 252 ways; p cannot be below 2 / 252.

    Raises:
        ValueError: Fewer than two runs in an arm, or more than 200,000 ways.

    >>> label_permutation_test([70.4, 71.5, 69.7, 72.2, 71.2], [71.1, 71.8, 70.0, 71.5, 72.6])
    0.5635
    """
    _check_runs(first, second)
    runs = np.array([*first, *second])
    _check_arrangements(math.comb(len(runs), len(first)))
    chosen = np.array(list(itertools.combinations(range(len(runs)), len(first))))
    sums = runs[chosen].sum(axis=1)
    differences = sums / len(first) - (runs.sum() - sums) / len(second)
    return _share_as_extreme(differences, float(np.mean(first) - np.mean(second)))


def equivalence_test(first: Runs, second: Runs, margin: float = 1.0) -> float:
    """P of two one-sided Welch tests: small where the means differ by less than the margin.

    Args:
        first: Results of one arm, at least two.
        second: Of the other.
        margin: The difference that would matter, in the metric's unit; above 0.

    Returns:
        NaN where neither arm varies: the test is undefined.

    Raises:
        ValueError: Fewer than two runs in an arm, or a margin that is not positive.

    >>> a, b = [70.4, 71.5, 69.7, 72.2, 71.2], [71.1, 71.8, 70.0, 71.5, 72.6]
    >>> equivalence_test(a, b, 1.0), equivalence_test(a, b, 2.0)
    (0.1770, 0.0153)
    """
    from scipy import stats

    _check_runs(first, second)
    if margin <= 0:
        raise ValueError(f"margin must be positive, got {margin}")
    if _constant(first) and _constant(second):
        return math.nan
    mean, deviation, count = _moments(first)
    above, below = (
        stats.ttest_ind_from_stats(
            shifted, deviation, count, *_moments(second), equal_var=False, alternative=alternative
        )
        for shifted, alternative in ((mean + margin, "greater"), (mean - margin, "less"))
    )
    return max(float(above.pvalue), float(below.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) correction of several p-values, in their order; NaN is not counted.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(
        (i for i, p in enumerate(p_values) if not math.isnan(p)), key=p_values.__getitem__
    )
    corrected, highest = list(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def bootstrap_interval(
    groups: Sequence[Runs], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the average of several tasks' means, such as GLUE's.

    Runs are drawn with replacement within each task: the tasks themselves are no sample.

    Args:
        groups: The runs of each task, at least one.
        confidence: In (0, 1).
        resamples: How many averages are drawn.
        seed: Of the draws.

    Raises:
        ValueError: No task, a task without a run, or a confidence outside of (0, 1).

    >>> bootstrap_interval([[1.0, 1.0], [3.0, 3.0]])
    (2.0, 2.0)
    """
    if not groups or not all(len(runs) for runs in groups):
        raise ValueError(f"every task needs at least one run, got {[len(runs) for runs in groups]}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    generator = np.random.default_rng(seed)
    means = [
        np.array(runs)[generator.integers(len(runs), size=(resamples, len(runs)))].mean(axis=1)
        for runs in groups
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.mean(means, axis=0), [tail, 1 - tail])
    return float(low), float(high)


def minimal_detectable_effect(num_runs: int, level: float = 0.05, power: float = 0.8) -> float:
    """Difference of means, in standard deviations, that a two-sided t-test finds often enough.

    Args:
        num_runs: Of each of the two arms, at least 2.
        level: Of the test.
        power: How often the difference is to be found, above ``level`` and below 1.

    Raises:
        ValueError: A value outside of its range.

    >>> minimal_detectable_effect(5)
    2.02
    """
    from scipy import optimize, stats

    if num_runs < 2:
        raise ValueError(f"num_runs must be at least 2, got {num_runs}")
    if not 0 < level < power < 1:
        raise ValueError(f"0 < level < power < 1 must hold, got level={level} and power={power}")
    freedom = 2 * num_runs - 2
    critical = stats.t.ppf(1 - level / 2, freedom)

    def lacking(effect: float) -> float:
        # the other tail would find a difference of the wrong sign: no success
        return float(stats.nct.sf(critical, freedom, effect * math.sqrt(num_runs / 2))) - power

    enough = 1.0
    while lacking(enough) < 0:
        enough *= 2
    return float(optimize.brentq(lacking, 0.0, enough))


def _share_as_extreme(arrangements: np.ndarray, observed: float) -> float:
    # equal sums differ in their last digits, as they were added up in another order
    tolerance = 1e-9 * max(1.0, float(np.abs(arrangements).max()))
    return float(np.mean(np.abs(arrangements) >= abs(observed) - tolerance))


def _differences(first: Runs, second: Runs) -> list[float]:
    _check_runs(first, second)
    if len(first) != len(second):
        raise ValueError(f"both arms need the same seeds, got {len(first)} and {len(second)} runs")
    return [a - b for a, b in zip(first, second, strict=True)]


def _moments(runs: Runs) -> tuple[float, float, int]:
    return (*mean_sd(runs), len(runs))


def _constant(values: Runs) -> bool:
    return max(values) - min(values) <= 1e-9 * max(1.0, *map(abs, values))


def _check_runs(*arms: Runs) -> None:
    for runs in arms:
        if len(runs) < 2:
            raise ValueError(f"a spread needs at least 2 runs, got {len(runs)}")


def _check_arrangements(count: int) -> None:
    if count > MAX_ARRANGEMENTS:
        raise ValueError(
            f"the exact test would enumerate {count} arrangements; with that many runs use "
            "welch_t_test or paired_t_test"
        )
