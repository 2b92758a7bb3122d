"""Benchmark data modules, one benchmark to a file, and the interface of training-set transforms."""

from lightning_kd.data.base import BenchmarkDataModule
from lightning_kd.data.batches import ResumableLoader, ShardedBatches
from lightning_kd.data.cifar import CIFAR
from lightning_kd.data.facts import DART, E2E, WebNLG
from lightning_kd.data.generation import GenerationDataModule
from lightning_kd.data.glue import GLUE
from lightning_kd.data.gsm8k import GSM8K
from lightning_kd.data.hellaswag import HellaSwag
from lightning_kd.data.instructions import Instructions
from lightning_kd.data.noise import FlipLabels
from lightning_kd.data.squad import SQuAD
from lightning_kd.data.text import TextDataModule
from lightning_kd.data.transform import Transform
from lightning_kd.data.trivia_qa import TriviaQA

BENCHMARKS: tuple[type[BenchmarkDataModule], ...] = (
    *(CIFAR, DART, E2E, GLUE, GSM8K, HellaSwag, Instructions, SQuAD, TriviaQA, WebNLG),
)
"""Every benchmark there is; `lightning_kd.tasks.task_named` searches it."""

__all__ = [
    "BENCHMARKS",
    "CIFAR",
    "DART",
    "E2E",
    "GLUE",
    "GSM8K",
    "BenchmarkDataModule",
    "FlipLabels",
    "GenerationDataModule",
    "HellaSwag",
    "Instructions",
    "ResumableLoader",
    "SQuAD",
    "ShardedBatches",
    "TextDataModule",
    "Transform",
    "TriviaQA",
    "WebNLG",
]
