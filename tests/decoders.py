"""Tiny decoders of every known family, six blocks deep, with a batch for them."""

from typing import Any

import torch
import transformers

from lightning_kd.nn import DecoderStack

VOCABULARY, WIDTH, DEPTH, EXITS = 97, 32, 6, [2, 4, 6]
FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
}


def made(family, tied=False, **changes) -> Any:
    config, model = FAMILIES[family]
    settings: dict[str, Any] = {"vocab_size": VOCABULARY, "tie_word_embeddings": tied}
    settings |= {"initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        settings |= {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 24}
        settings |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    else:
        settings |= {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "intermediate_size": 40}
        settings |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        settings |= {"max_position_embeddings": 24}
    if family == "mistral":
        settings["sliding_window"] = 5
    if family == "qwen2":
        settings |= {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}
    torch.manual_seed(0)
    network = model(config(**settings, **changes)).eval()
    norm: Any = DecoderStack.of(network).norm
    torch.nn.init.normal_(norm.weight, 1.0, 0.5)
    return network


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, VOCABULARY, (3, 9), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    mask[2, 3:] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def labels(tokens) -> torch.Tensor:
    """Targets after a prompt of two tokens, without padding; the last row has none."""
    wanted = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
    wanted[:, :2] = -100
    wanted[2] = -100
    return wanted


def independently_cut(model, depth) -> Any:
    """A fresh model of the shallower config, given the weights by their names."""
    config = model.config.to_dict()
    config["n_layer" if "n_layer" in config else "num_hidden_layers"] = depth
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:depth]
    cut = type(model)(type(model.config)(**config)).eval()
    weights = model.state_dict()
    cut.load_state_dict({name: weights[name] for name in cut.state_dict()})
    return cut
