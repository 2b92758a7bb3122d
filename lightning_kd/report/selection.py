"""How sure a number is, and which size to pick.

The one-standard-error rule (Breiman et al., 1984, section 3.4.3): most differences between
neighbouring sizes are smaller than what another sample of the same examples would change, so the
smallest size that is as good up to that is offered beside the best.
"""

import math
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_kd.report.summary import Result, Summary
from lightning_kd.tasks import best_of


def standard_error(
    metric: Callable[[Tensor, Tensor], Tensor],
    answers: Tensor,
    labels: Tensor,
    resamples: int = 200,
    seed: int = 0,
) -> float:
    r"""Bootstrap standard error of a metric (Efron, 1979).

    .. math:: \sqrt{\tfrac{1}{B-1} \sum_{i=1}^{B} (m_i - \bar m)^2}

    with :math:`m_i` the metric of :math:`n` examples drawn with replacement. For accuracy it tends
    to :math:`\sqrt{p (1 - p) / n}`; if every example is answered correctly it is 0. The relative
    error of the estimate itself is about :math:`1 / \sqrt{2 B}`, 5 % at 200 resamples.

    Args:
        metric: maps answers and labels to one number.
        answers: [n, ...], one answer per example.
        labels: [n, ...].
        resamples: :math:`B`, at least 2.
        seed: of the draws; two models with the same seed are measured on the same resamples.

    Returns:
        The standard error in the metric's unit. Resamples on which the metric is not finite (a
        correlation when only one class was drawn) are left out; NaN if fewer than two remain.

    >>> answers, labels = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 1, 0, 0])
    >>> standard_error(lambda a, b: (a == b).float().mean(), answers, labels)
    0.0
    """
    if len(answers) != len(labels) or len(labels) == 0:
        raise ValueError(
            "answers and labels must be of the same examples, at least one; "
            f"got {len(answers)} answers and {len(labels)} labels"
        )
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    generator = torch.Generator().manual_seed(seed)
    values = []
    with torch.no_grad():
        for _ in range(resamples):
            draw = torch.randint(len(labels), (len(labels),), generator=generator)
            value = float(metric(answers[draw.to(answers.device)], labels[draw.to(labels.device)]))
            values += [value] if math.isfinite(value) else []
    return statistics.stdev(values) if len(values) > 1 else math.nan


def choose_sizes(results: Sequence[Result], split: str, metric: str) -> list[int]:
    """The best size, and the smallest size within one standard error (of the best) of it.

    Args:
        results: of all sizes; a standard error that is missing or not finite counts as 0, and then
            only an equal value is near enough.
        split: to choose on; never the test split.
        metric: to choose by; `lightning_kd.tasks.best_of` says which way.

    Returns:
        One or two sizes, ascending. Of equally good sizes the smallest is the best. Empty if no
        result has a size or none is finite.

    Raises:
        ValueError: if there is no result of this metric on this split.

    >>> values = {1: 0.80, 2: 0.88, 4: 0.90, 8: 0.89}
    >>> choose_sizes(
    ...     [Result(r, "dev", "f1", v, 0, standard_error=0.03) for r, v in values.items()],
    ...     split="dev",
    ...     metric="f1",
    ... )
    [2, 4]
    """
    candidates = [result for result in results if (result.split, result.metric) == (split, metric)]
    if not candidates:
        known = sorted({f"{result.metric} on {result.split}" for result in results})
        raise ValueError(
            f"no result of {metric} on {split} to choose a size by; there is "
            f"{', '.join(known) or 'none at all'}"
        )
    finite = {r.size: r for r in candidates if r.size is not None and math.isfinite(r.value)}
    if not finite:
        return []
    sign = -1 if best_of(metric) == "min" else 1
    # The first of equals, so the smallest.
    best = max(sorted(finite), key=lambda size: sign * finite[size].value)
    error = _known(finite[best].standard_error)
    limit = sign * finite[best].value - error
    near = [size for size in finite if sign * finite[size].value >= limit]
    return sorted({best, min(near)})


def explain(summary: Summary, chosen: Sequence[int]) -> str:
    """One sentence saying which sizes are marked and by which rule.

    Args:
        summary: of the run.
        chosen: what :func:`choose_sizes` gave for the first split and metric, or what the user
            asked for.
    """
    name = summary.size_name
    split, metric = summary.splits[0], summary.metrics[0]
    if not chosen:
        return f"No {name} was chosen."
    if sorted(chosen) != choose_sizes(summary.results, split, metric):
        noun = name if len(chosen) == 1 else f"{name}s"
        return f"{noun.capitalize()} {_listed(chosen)} as asked for."
    marked = {
        result.size: result
        for result in summary.results
        if result.size in chosen and (result.split, result.metric) == (split, metric)
    }
    sign = -1 if best_of(metric) == "min" else 1
    best = max(sorted(chosen), key=lambda size: sign * marked[size].value)
    rule = f"{name.capitalize()} {best} is best by {metric} on {split.replace('_', ' ')}"
    error = marked[best].standard_error
    if error is None or not math.isfinite(error):
        return f"{rule}; standard errors were not computed."
    within = f"within one standard error ({error:.4f}) of it"
    if len(chosen) == 1:
        return f"{rule}, and no smaller {name} is {within}."
    return f"{rule}; {name} {min(chosen)} is the smallest {within}."


def _listed(sizes: Sequence[int]) -> str:
    return " and ".join(filter(None, (", ".join(map(str, sorted(sizes)[:-1])), str(max(sizes)))))


def _known(error: float | None) -> float:
    return error if error is not None and math.isfinite(error) else 0.0
