"""Trainings of models that are tiny, and of one that is not."""

from typing import Any

import torch

from lightning_kd.planning import Training
from tests import tiny


def language_model(**changes: Any) -> Any:
    """A tiny Llama's config, wide enough for blocks of 64."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}
    return transformers.LlamaConfig(**{**sizes, **heads, "pad_token_id": 0, **changes})


def training(**changes: Any) -> Training:
    """Of that model on this CPU."""
    given = {"student": language_model(), "device": "cpu", "batch_size": 4, "length": 24}
    return Training(**{**given, **changes})


def falcon(**changes: Any) -> Training:
    """QDyLoRA of Falcon-40B at ranks up to 64, one text of 512 tokens."""
    import transformers

    config = transformers.FalconConfig(
        vocab_size=65024, hidden_size=8192, num_hidden_layers=60, num_attention_heads=128,
        num_kv_heads=8, new_decoder_architecture=True, bias=False, tie_word_embeddings=True,
    )  # fmt: skip
    given: dict[str, Any] = {
        "student": config,
        "train": "adapter",
        "dynamic": True,
        "rank": 64,
        "target_modules": "all-linear",
        "adapter_dtype": torch.float16,
        "quantization": "nf4",
        "compute_dtype": torch.float16,
        "dtype": torch.float16,
        "optimizer": "adamw_32bit",
        "paged": True,
        "accumulate": 16,
        "checkpointing": True,
        "length": 512,
    }
    return Training(**{**given, **changes})


def bert(**changes: Any) -> Training:
    """Of a tiny BERT that classifies."""
    given = {"student": tiny.config("bert"), "task": tiny.TASKS["classification"]}
    return Training(**{**given, "device": "cpu", "batch_size": 8, "length": 16, **changes})
