"""Scores of written texts, where torchmetrics has none that fits."""

from lightning_kd.metrics.texts import SCORERS, Scorer, exact_match, normalized

__all__ = ["SCORERS", "Scorer", "exact_match", "normalized"]
