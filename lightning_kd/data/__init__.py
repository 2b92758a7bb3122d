"""Benchmark data modules, one benchmark to a file, and the interface of training-set transforms."""

from lightning_kd.data.base import BenchmarkDataModule, Transform
from lightning_kd.data.batches import ResumableLoader, ShardedBatches
from lightning_kd.data.glue import GLUE

BENCHMARKS: tuple[type[BenchmarkDataModule], ...] = (GLUE,)
"""Every benchmark there is; `lightning_kd.tasks.task_named` searches it."""

__all__ = [
    "BENCHMARKS",
    "GLUE",
    "BenchmarkDataModule",
    "ResumableLoader",
    "ShardedBatches",
    "Transform",
]
