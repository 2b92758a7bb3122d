"""Everything that a few paired runs say about two arms of an experiment, in one record."""

import statistics
from dataclasses import dataclass

from lightning_kd.statistics import (
    Runs,
    equivalence_test,
    label_permutation_test,
    paired_t_test,
    sign_flip_test,
    welch_t_test,
)

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """What a few paired runs say about two arms; ``difference`` is second minus first.

    Attributes:
        difference: Of the means.
        welch: p of `welch_t_test`.
        paired: p of `paired_t_test`; None where it is undefined.
        sign_flip: p of `sign_flip_test`.
        permutation: p of `label_permutation_test`.
        equivalence: p of `equivalence_test` at ``margin``.
        margin: In the metric's unit.
    """

    difference: float
    welch: float
    paired: float | None
    sign_flip: float
    permutation: float
    equivalence: float
    margin: float

    def verdict(self, level: float = 0.05) -> str:
        """``better``, ``worse``, ``equivalent`` or ``undecided``, by Welch and equivalence.

        >>> compare([70.4, 71.5, 69.7, 72.2, 71.2], [71.1, 71.8, 70.0, 71.5, 72.6]).verdict()
        'undecided'
        """
        if self.equivalence < level:
            return "equivalent"
        if self.welch < level:
            return "better" if self.difference > 0 else "worse"
        return "undecided"


def compare(first: Runs, second: Runs, margin: float = 1.0) -> Comparison:
    """All tests of two arms whose runs are paired by seed.

    Raises:
        ValueError: See the tests.
    """
    paired = paired_t_test(first, second)
    return Comparison(
        difference=statistics.fmean(second) - statistics.fmean(first),
        welch=welch_t_test(first, second)[1],
        paired=None if paired is None else paired[1],
        sign_flip=sign_flip_test(first, second),
        permutation=label_permutation_test(first, second),
        equivalence=equivalence_test(first, second, margin),
        margin=margin,
    )
