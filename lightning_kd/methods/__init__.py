"""The methods: one file and one class per paper."""

from lightning_kd.methods.adapter import AdapterModule
from lightning_kd.methods.base import TaskModule
from lightning_kd.methods.distillation import DistillationModule
from lightning_kd.methods.dylora import DyLoRA
from lightning_kd.methods.fine_tuning import FineTuning
from lightning_kd.methods.lora import LoRA
from lightning_kd.methods.vanilla_kd import VanillaKD

METHODS = ("DyLoRA", "FineTuning", "LoRA", "VanillaKD")
"""Names of the classes that implement a method, as the README lists them."""

__all__ = [
    "METHODS",
    "AdapterModule",
    "DistillationModule",
    "DyLoRA",
    "FineTuning",
    "LoRA",
    "TaskModule",
    "VanillaKD",
]
