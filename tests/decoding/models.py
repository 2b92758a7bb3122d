"""Tiny decoders of every family that decoding knows, large enough to have exits."""

import copy
from functools import cache

import torch
from torch import nn

from lightning_kd.decoding import probe_exits
from lightning_kd.nn import keep_layers

VOCABULARY = 97
DEPTH = 6


SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GROUPED = {
    **SHAPE,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
# of a Qwen2 the first layers see everything, the others a window
HALF = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3}


def _made(kind, settings, changes) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**settings, **changes})
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    return getattr(transformers, name)(config)


_FAMILIES = {
    "llama": lambda c: _made("Llama", GROUPED, c),
    "tied llama": lambda c: _made("Llama", {**GROUPED, "tie_word_embeddings": True}, c),
    "qwen2": lambda c: _made("Qwen2", {**GROUPED, **HALF}, c),
    "qwen3": lambda c: _made("Qwen3", {**GROUPED, "head_dim": 8}, c),
    "mistral": lambda c: _made("Mistral", {**GROUPED, "sliding_window": None}, c),
    "sliding mistral": lambda c: _made("Mistral", {**GROUPED, "sliding_window": 8}, c),
    "gpt2": lambda c: _made("GPT2", {**SHAPE, "n_positions": 128}, c),
}
FAMILIES = tuple(_FAMILIES)


def decoder(family="llama", seed=0, **changes) -> nn.Module:
    """Random weights of deviation 0.2: greedy text that wanders, logits without near ties."""
    made = _FAMILIES[family](changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            norm = "norm" in name or "ln_" in name
            if norm and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                # tied and with biases, a GPT-2 of small weights repeats one token
                scale = 0.35 if family == "gpt2" and ".h." in name else 0.2
                scale *= 0.2 if name.endswith("bias") else 1.0
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return made.eval()


def prompt(length=9, seed=0) -> torch.Tensor:
    """``[1, length]`` random tokens."""
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randint(VOCABULARY, (1, length), generator=generator)


def agreeing(family="llama") -> nn.Module:
    """A decoder whose later blocks change little: drafts are right often, but not always."""
    model = decoder(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            block = next((int(p) for p in name.split(".") if p.isdigit()), 0)
            if block >= 2 and name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight")):
                parameter.mul_(0.15)
    return model


def middling(model, exits, confidence="max_prob", share=0.7) -> list[float]:
    """Thresholds that a part of the tokens passes at each of the exits."""
    (probe,) = probe_exits(model, [prompt()], exits, 40, confidence=confidence, eos=())
    return [float(row.quantile(share)) for row in probe.confidence]


@cache
def reference(family, count=60) -> tuple[torch.Tensor, list[int]]:
    """A prompt, and transformers' greedy text of the agreeing decoder."""
    ids = prompt()
    return ids, generated(agreeing(family), ids, count)


def generated(model, ids, count=60, **options) -> list[int]:
    """What transformers decodes greedily."""
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    mask = torch.ones_like(ids)
    made = model.generate(ids, attention_mask=mask, max_new_tokens=count, **settings)
    return made[0, ids.shape[1] :].tolist()


def cut(model, depth) -> nn.Module:
    """A copy of the first blocks with the same norm and head."""
    short = copy.deepcopy(model)
    keep_layers(short, depth)
    return short
