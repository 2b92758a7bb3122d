"""Is a DyLoRA training step as fast as a LoRA step, and faster than LyCORIS's DyLoRA?

A step is forward, backward and the strict optimizer step on the MiniLM encoder with its task head:
R=8 on query and value, 32 sentences of 64 tokens, fp32, dropout of the encoder on. The peer is PEFT
at r=8 with torch's AdamW: same base, same head, same starting factors (the losses are compared
before anything is timed). Two limits are printed: the head alone over the frozen encoder, which
needs no backward pass through it, and the frozen encoder with the backward pass that any adapter in
the first layer needs, but without adapters (rank 0): what is left between it and 1 is all that an
adapter's code can win.

LyCORIS is compared on one layer, 768 to 768, 4096 tokens, forward and backward, both drawing ranks
uniformly.

    python benchmarks/dylora_step.py
    python benchmarks/dylora_step.py --rounds 2 --layer_rounds 5     # a quick try
"""

import argparse
import logging
import random
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import (
    Check,
    Spread,
    interleaved,
    mean_by_round,
    parser,
    ratio,
    report,
    start,
    token_batches,
)
from lightning_kd.methods import DyLoRA, FineTuning, LoRA, TaskModule
from lightning_kd.nn import DynamicLoRALinear

RANKS = range(1, 9)
MAX_RANK = RANKS[-1]
UPDATES = ("frozen", "full")
LAYER_SIZE, LAYER_TOKENS = 768, 4096
Batch = dict[str, Tensor]
