"""Callbacks for any LightningModule, ours or yours."""

from lightning_kd.callbacks.anneal import Anneal
from lightning_kd.callbacks.size_sampler import SizeSampler, size_probabilities
from lightning_kd.callbacks.student_averaging import StudentAveraging
from lightning_kd.callbacks.trajectory_recorder import TrajectoryRecorder

__all__ = [
    "Anneal",
    "SizeSampler",
    "StudentAveraging",
    "TrajectoryRecorder",
    "size_probabilities",
]
