"""Callbacks for any LightningModule, ours or yours."""

from lightning_kd.callbacks.anneal import Anneal
from lightning_kd.callbacks.size_sampler import SizeSampler, size_probabilities

__all__ = ["Anneal", "SizeSampler", "size_probabilities"]
