"""Scores of written texts, where torchmetrics has none that fits."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from lightning_kd.metrics.numbers import final_answer_match, last_number_match
from lightning_kd.metrics.overlap import bleu, cider, nist, rouge_l, ter
from lightning_kd.metrics.texts import (
    Scorer,
    exact_match,
    normalized,
    normalized_match,
    word_f1,
)

SCORERS: Final[Mapping[str, Scorer]] = {
    "bleu": bleu,
    "case_sensitive_match": exact_match,
    "cider": cider,
    "exact_match": normalized_match,
    "f1": word_f1,
    "final_answer_match": final_answer_match,
    "last_number_match": last_number_match,
    "nist": nist,
    "rouge_l": rouge_l,
    "ter": ter,
}
"""By the name of the metric."""

_PACKAGES = {
    "bleu": "sacrebleu",
    "nist": "sacrebleu",
    "ter": "sacrebleu",
    "rouge_l": "rouge_score",
}


def base_and_part(name: str, scorers: Mapping[str, Scorer] = SCORERS) -> tuple[str, str]:
    """A metric's name and the part of a benchmark that it is of (empty: all of it).

    >>> base_and_part("bleu_unseen"), base_and_part("rouge_l")
    (('bleu', 'unseen'), ('rouge_l', ''))
    """
    if name in scorers or "_" not in name:
        return name, ""
    base, _, part = name.rpartition("_")
    return base, part


def check_metric(name: str) -> None:
    """Say before a training what would fail after it.

    Raises:
        ValueError: A metric that nobody scores.
        ImportError: Its package is not installed.

    >>> check_metric("cider")
    """
    name, _ = base_and_part(name)
    if name == "meteor":
        raise ValueError(
            "METEOR needs WordNet, which no Python package brings along and no kept library "
            "downloads; choose rouge_l or cider, or score predictions.jsonl with its own script"
        )
    if name not in SCORERS:
        raise ValueError(f"there is no metric {name!r}; choose from {', '.join(SCORERS)}")
    package = _PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        raise ImportError(
            f"the metric {name} needs the package {package.replace('_', '-')}; pip install -e "
            ".[llm], or write no texts in evaluations with --data.generate_examples 0"
        )


__all__ = ["SCORERS", "Scorer", "base_and_part", "check_metric", "exact_match", "normalized"]
