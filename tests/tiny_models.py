"""Tiny models of every kind, in memory and as folders: the part of `tests/tiny.py` about them."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_kd.models import load_model
from lightning_kd.nn import CifarResNet
from lightning_kd.tasks import CausalLM, Image, Task
from tests.tiny_data import TASKS, VOCABULARY, tokenizer_folder, writer_tokenizer


def config(kind: str = "bert", **changes: Any) -> Any:
    """A transformers config of some hundred weights: bert, roberta, gpt2 or llama."""
    import transformers

    wide = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = {**wide, "intermediate_size": 16, "max_position_embeddings": 24}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    match kind:
        case "bert":
            made: Any = transformers.BertConfig
            settings = {**bert, **no_dropout}
        case "roberta":
            made = transformers.RobertaConfig
            settings = {**bert, **no_dropout, "pad_token_id": 1}
        case "gpt2":
            made = transformers.GPT2Config
            settings = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 24}
            settings |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0)
            settings |= {"bos_token_id": 0, "eos_token_id": 0}
        case "llama":
            made = transformers.LlamaConfig
            settings = {**wide, "intermediate_size": 16, "num_key_value_heads": 1}
            settings |= {"max_position_embeddings": 24, "eos_token_id": 0}
        case _:
            raise ValueError(f"there is no tiny {kind!r}")
    return made(**{"vocab_size": VOCABULARY, **settings, **changes})


def model(
    kind: str = "bert",
    task: Task = TASKS["classification"],
    seed: int = 0,
    *,
    batch_norm: bool = True,
    spread: float = 0.02,
) -> nn.Module:
    """A randomly initialized model, the same one for the same seed, in eval mode.

    For images it is a ResNet-8 whatever the kind, and ``batch_norm`` its normalization; ``spread``
    is the deviation of a language model's weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(task, Image):
            norm: Any = "batch" if batch_norm else "group"
            return CifarResNet(8, task.labels, task.num_channels, width=2, norm=norm).eval()
        if isinstance(task, CausalLM) and kind == "bert":  # which reads both ways
            return load_model(config("llama", initializer_range=spread), task).eval()
        return load_model(config(kind), task).eval()


def model_folder(folder: Path, kind: str = "bert", seed: int = 0, **changes: Any) -> Path:
    """A Hugging Face folder with weights and tokenizer, for what takes names."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        task = TASKS["text" if kind == "llama" else "classification"]
        made = load_model(config(kind, **changes), task)
    made.save_pretrained(folder)  # type: ignore[operator]
    return tokenizer_folder(folder)


def writer_folder(folder: Path, kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """The same of a language model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        room = {"max_position_embeddings": 96}  # for a prompt and what a benchmark asks for
        settings = {"eos_token_id": 2, "pad_token_id": 0, **room, **changes}
        made = load_model(config(kind, **settings), TASKS["text"])
    made.save_pretrained(folder)  # type: ignore[operator]
    return writer_tokenizer(folder)


@cache
def named_model(kind: str = "bert", layers: int = 2, **changes: Any) -> str:
    """A folder of `model_folder`, the same for the whole session; ``llama`` writes texts."""
    folder = Path(tempfile.mkdtemp(prefix="lightning-kd-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(model_folder(folder, kind, seed=5, num_hidden_layers=layers, **changes))
