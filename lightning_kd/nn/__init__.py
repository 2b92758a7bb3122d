"""Layers and the surgery that puts them into a model."""

from lightning_kd.nn.batch_norm import batch_norm_layers, refresh_batch_norm
from lightning_kd.nn.decoder_stack import DecoderStack
from lightning_kd.nn.dynamic_lora import DynamicLoRALinear, dynamic_lora_layers, sample_ranks
from lightning_kd.nn.four_bit_linear import FourBitLinear, dense_weight, is_four_bit
from lightning_kd.nn.packed_linear import PackedLinear, can_pack, pack_linear_layers
from lightning_kd.nn.resnet import CifarResNet
from lightning_kd.nn.sorted_exits import ending_at, exit_states, truncated
from lightning_kd.nn.surgery import keep_layers, match_linear_layers, replace_modules

__all__ = [
    "CifarResNet",
    "DecoderStack",
    "DynamicLoRALinear",
    "FourBitLinear",
    "PackedLinear",
    "batch_norm_layers",
    "can_pack",
    "dense_weight",
    "dynamic_lora_layers",
    "ending_at",
    "exit_states",
    "is_four_bit",
    "keep_layers",
    "match_linear_layers",
    "pack_linear_layers",
    "refresh_batch_norm",
    "replace_modules",
    "sample_ranks",
    "truncated",
]
