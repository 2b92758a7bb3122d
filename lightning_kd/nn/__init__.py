"""Layers and the surgery that puts them into a model."""

from lightning_kd.nn.batch_norm import batch_norm_layers, refresh_batch_norm
from lightning_kd.nn.decoder_stack import DecoderStack
from lightning_kd.nn.dynamic_lora import DynamicLoRALinear, dynamic_lora_layers, sample_ranks
from lightning_kd.nn.four_bit_linear import FourBitLinear, dense_weight, is_four_bit
from lightning_kd.nn.resnet import CifarResNet
from lightning_kd.nn.surgery import keep_layers, match_linear_layers, replace_modules

__all__ = [
    "CifarResNet",
    "DecoderStack",
    "DynamicLoRALinear",
    "FourBitLinear",
    "batch_norm_layers",
    "dense_weight",
    "dynamic_lora_layers",
    "is_four_bit",
    "keep_layers",
    "match_linear_layers",
    "refresh_batch_norm",
    "replace_modules",
    "sample_ranks",
]
