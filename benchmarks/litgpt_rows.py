"""Peaks that litgpt publishes of its own fine-tuning runs, and the same runs as plans.

Facts only: `tutorials/resource-tables.md` (one A100 of 40 GB, Alpaca, the longest example first,
LoRA of rank 8 on queries and values) and `config_hub/finetune/README.md` with the YAML files beside
it (one A10G, at most 512 tokens). GB are 10^9 bytes of `torch.cuda.max_memory_allocated`: without
the CUDA context. Rows without a figure (out of memory), runs on several GPUs and Gemma 2, which
computes attention in the open, are left out; so is full fine-tuning of Phi-3, whose published peak
is smaller than its weights, gradients and moments.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from lightning_kd.planning import Training

LENGTHS = {"phi-1.5": 1044, "stablelm-3b": 1034, "llama-2-7b": 1304, "llama-2-13b": 1304}
"""Tokens of Alpaca's longest example, by tokenizer."""


class Row(NamedTuple):
    """A published run."""

    source: str
    model: str
    quantization: str
    batch_size: int
    gigabytes: float
    rank: int = 8
    everywhere: bool = False
    optimizer: str = "adamw"


RESOURCES = [  # model, quantization, batch, GB
    ("phi-1.5", "", 1, 4.82), ("phi-1.5", "nf4", 1, 3.78), ("phi-1.5", "nf4-dq", 1, 3.72),
    ("phi-1.5", "", 2, 6.76), ("phi-1.5", "", 4, 10.68),
    ("stablelm-3b", "", 1, 9.69), ("stablelm-3b", "nf4", 1, 6.35),
    ("stablelm-3b", "nf4-dq", 1, 6.19), ("stablelm-3b", "", 2, 12.10),
    ("stablelm-3b", "", 4, 16.92),
    ("llama-2-7b", "", 1, 21.30), ("llama-2-7b", "nf4", 1, 14.14),
    ("llama-2-7b", "nf4-dq", 1, 13.84), ("llama-2-7b", "", 2, 29.07),
    ("llama-2-13b", "", 1, 38.12), ("llama-2-13b", "nf4", 1, 23.14),
    ("llama-2-13b", "nf4-dq", 1, 22.55),
]  # fmt: skip
RECIPES = [  # model, quantization, batch, GB, rank, adapters everywhere (and on the head)
    ("falcon-7b", "", 1, 16.69, 32, False), ("falcon-7b", "nf4", 1, 9.44, 32, False),
    ("gemma-2b", "", 2, 12.62, 8, True), ("gemma-2b", "nf4", 2, 11.58, 16, True),
    ("gemma-7b", "nf4", 1, 17.18, 16, True),
    ("llama-2-7b", "", 2, 19.77, 32, False), ("llama-2-7b", "nf4", 2, 13.68, 32, False),
    ("llama-3-8b", "", 1, 19.73, 32, False), ("llama-3-8b", "nf4", 2, 17.41, 32, False),
    ("mistral-7b", "", 2, 20.66, 32, False), ("mistral-7b", "nf4", 2, 14.29, 32, False),
    ("phi-2", "", 4, 13.98, 8, True), ("phi-2", "nf4", 4, 14.27, 8, True),
    ("phi-3", "", 4, 19.75, 8, True), ("phi-3", "nf4", 4, 19.13, 8, True),
    ("stablelm-3b", "", 1, 8.58, 32, False), ("stablelm-3b", "nf4", 1, 5.24, 32, False),
    ("tiny-llama", "", 8, 13.50, 32, True), ("tiny-llama", "nf4", 8, 16.24, 32, True),
    ("tiny-llama", "all", 4, 14.10, 0, False),
]  # fmt: skip

FUSED = {"hidden_act": "gelu_pytorch_tanh"}  # one kernel there, eight steps in transformers
SHAPES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    # class; hidden, intermediate, layers, heads, key-value heads, vocabulary; more
    "phi-1.5": (
        "Phi", (2048, 8192, 24, 32, 32, 51200), {"partial_rotary_factor": 0.5, **FUSED}
    ),
    "phi-2": ("Phi", (2560, 10240, 32, 32, 32, 51200), {"partial_rotary_factor": 0.4, **FUSED}),
    "phi-3": ("Phi3", (3072, 8192, 32, 32, 32, 32064), {"pad_token_id": 0}),
    "llama-2-7b": ("Llama", (4096, 11008, 32, 32, 32, 32000), {}),
    "llama-2-13b": ("Llama", (5120, 13824, 40, 40, 40, 32000), {}),
    "llama-3-8b": ("Llama", (4096, 14336, 32, 32, 8, 128256), {}),
    "mistral-7b": ("Mistral", (4096, 14336, 32, 32, 8, 32000), {}),
    "tiny-llama": ("Llama", (2048, 5632, 22, 32, 4, 32000), {}),
    "gemma-2b": ("Gemma", (2048, 16384, 18, 8, 1, 256000), {"head_dim": 256}),
    "gemma-7b": ("Gemma", (3072, 24576, 28, 16, 16, 256000), {"head_dim": 256}),
    "falcon-7b": (
        "Falcon", (4544, 18176, 32, 71, 1, 65024),
        {"multi_query": True, "parallel_attn": True, "bias": False},
    ),
    "stablelm-3b": ("GPTNeoX", (4096, 16384, 16, 32, 32, 50688), {}),
}  # fmt: skip


def rows() -> Iterator[Row]:
    """Every row of the two tables that has a figure for one GPU."""
    yield from (Row("resource-tables", *row) for row in RESOURCES)
    yield from (Row("config_hub", *row) for row in RECIPES)


def shapes(name: str) -> Any:
    """The transformers config of a model's published shape; litgpt never ties an embedding."""
    import transformers

    kind, sizes, more = SHAPES[name]
    names = [
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size",
    ]  # fmt: skip
    if kind in ("Falcon", "GPTNeoX"):  # have no such size, or count it from other settings
        names[4] = "unused"
    given = dict(zip(names, sizes, strict=True))
    given.pop("unused", None)
    common: dict[str, Any] = {"max_position_embeddings": 4096, "tie_word_embeddings": False}
    return getattr(transformers, f"{kind}Config")(**{**common, **given, **more})


def training_of(row: Row) -> Training:
    """A row as a plan: bf16 weights and adapters, every linear layer quantized, the head too."""
    length = LENGTHS[row.model] if row.source == "resource-tables" else 512
    common: dict[str, Any] = {
        "student": shapes(row.model),
        "batch_size": row.batch_size,
        "length": length,
        "precision": "bf16-true",
        "padded": False,  # litgpt gives attention no mask
        "accumulate": 8,
    }
    if row.quantization == "all":
        return Training(**common)
    quantized = bool(row.quantization)
    fused = row.model in ("falcon-7b", "stablelm-3b")
    targets = ["query_key_value"] if fused else ["q_proj", "v_proj"]
    if row.model == "phi-3":
        targets = ["qkv_proj"]
    return Training(
        train="adapter",
        rank=row.rank,
        adapter_dtype=torch.bfloat16,
        dropout=0.05,
        target_modules="all-linear" if row.everywhere else targets,
        quantization="nf4" if quantized else None,
        quantize_head=quantized,
        double_quant=row.quantization.endswith("-dq"),
        compute_dtype=torch.bfloat16,
        old_bitsandbytes=True,  # 0.41 and 0.42
        optimizer="adamw_32bit" if quantized else "adamw",
        **common,
    )
