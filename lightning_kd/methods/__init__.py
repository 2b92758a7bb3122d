"""The methods: one file and one class per paper."""

from lightning_kd.methods.adapter import AdapterModule
from lightning_kd.methods.base import TaskModule
from lightning_kd.methods.dylora import DyLoRA
from lightning_kd.methods.fine_tuning import FineTuning
from lightning_kd.methods.lora import LoRA

METHODS = ("DyLoRA", "FineTuning", "LoRA")
"""Names of the classes that implement a method, as the README lists them."""

__all__ = ["METHODS", "AdapterModule", "DyLoRA", "FineTuning", "LoRA", "TaskModule"]
