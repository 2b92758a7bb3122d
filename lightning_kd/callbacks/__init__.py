"""Callbacks for any LightningModule, ours or yours."""

from lightning_kd.callbacks.anneal import Anneal
from lightning_kd.callbacks.size_sampler import SizeSampler, size_probabilities
from lightning_kd.callbacks.student_averaging import StudentAveraging

__all__ = ["Anneal", "SizeSampler", "StudentAveraging", "size_probabilities"]
