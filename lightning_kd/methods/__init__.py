"""The methods: one file and one class per paper."""

from lightning_kd.methods.adapter import AdapterModule
from lightning_kd.methods.annealing_kd import AnnealingKD
from lightning_kd.methods.base import TaskModule
from lightning_kd.methods.continuation_kd import ContinuationKD
from lightning_kd.methods.distillation import DistillationModule
from lightning_kd.methods.dylora import DyLoRA
from lightning_kd.methods.fine_tuning import FineTuning
from lightning_kd.methods.label_regularization import LabelRegularization
from lightning_kd.methods.lora import LoRA
from lightning_kd.methods.noisy_label_kd import NoisyLabelKD
from lightning_kd.methods.pro_kd import ProKD
from lightning_kd.methods.qdylora import QDyLoRA
from lightning_kd.methods.soft import SoFT
from lightning_kd.methods.vanilla_kd import VanillaKD

METHODS = (
    "AnnealingKD",
    "ContinuationKD",
    "DyLoRA",
    "FineTuning",
    "LabelRegularization",
    "LoRA",
    "NoisyLabelKD",
    "ProKD",
    "QDyLoRA",
    "SoFT",
    "VanillaKD",
)
"""Names of the classes that implement a method, as the README lists them."""

__all__ = [
    "METHODS",
    "AdapterModule",
    "AnnealingKD",
    "ContinuationKD",
    "DistillationModule",
    "DyLoRA",
    "FineTuning",
    "LabelRegularization",
    "LoRA",
    "NoisyLabelKD",
    "ProKD",
    "QDyLoRA",
    "SoFT",
    "TaskModule",
    "VanillaKD",
]
