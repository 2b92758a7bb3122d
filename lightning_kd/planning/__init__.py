"""Memory before a training: what it needs, by part, from the model's config alone."""

from lightning_kd.planning.gpus import GPU, GPUS, gpu_named, parse_memory
from lightning_kd.planning.memory import Plan, largest_batch, plan_memory
from lightning_kd.planning.quantized import nf4_bytes
from lightning_kd.planning.training import Training

__all__ = [
    "GPU",
    "GPUS",
    "Plan",
    "Training",
    "gpu_named",
    "largest_batch",
    "nf4_bytes",
    "parse_memory",
    "plan_memory",
]
