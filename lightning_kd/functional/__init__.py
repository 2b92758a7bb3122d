"""The mathematics: pure functions on tensors, unreduced, importing nothing but torch."""

from lightning_kd.functional.dynamic_lora import (
    LORA_SCALINGS,
    dynamic_lora,
    dynamic_lora_sweep,
    lora_scale,
    truncate_svd,
)
from lightning_kd.functional.kd import kd_loss, logit_mse

__all__ = [
    "LORA_SCALINGS",
    "dynamic_lora",
    "dynamic_lora_sweep",
    "kd_loss",
    "logit_mse",
    "lora_scale",
    "truncate_svd",
]
