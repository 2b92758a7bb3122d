"""The parts of a decoder language model: embedding, blocks, final norm and head, by any name.

Llama, Mistral, Qwen2, Qwen3, SmolLM2 (a Llama) and GPT-2 of transformers 5 are known; a model
whose logits are more than ``head(norm(h))`` is refused.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_NAMES = (("model", "embed_tokens", "layers", "norm"), ("transformer", "wte", "h", "ln_f"))
_CHANGES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class DecoderStack:
    """Where a causal language model of transformers keeps its parts; nothing is copied.

    Attributes:
        model: The model itself, ``...ForCausalLM``.
        backbone: The model without its head.
        embedding: Tokens to ``h_0``; learned positions, where there are any, are not part of it.
        layers: The blocks; ``h_k = layers[k - 1](h_{k-1})``.
        norm: The one final norm.
        head: ``[d] -> [V]``, maybe tied to the embedding.
    """

    model: Any
    backbone: Any
    embedding: nn.Embedding
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Linear

    @classmethod
    def of(cls, model: nn.Module) -> "DecoderStack":
        """The parts of ``model``.

        Raises:
            TypeError: It is none of the known families, or its logits are not ``head(norm(h))``.

        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=9,
        ...     hidden_size=4,
        ...     intermediate_size=4,
        ...     num_hidden_layers=3,
        ...     num_attention_heads=1,
        ... )
        >>> len(DecoderStack.of(LlamaForCausalLM(config)).layers)
        3
        """
        head: Any = getattr(model, "lm_head", None)
        for backbone_name, *names in _NAMES:
            backbone = getattr(model, backbone_name, None)
            parts: list[Any] = [getattr(backbone, name, None) for name in names]
            embedding, layers, norm = parts
            if isinstance(layers, nn.ModuleList) and None not in (head, embedding, norm):
                break
        else:
            raise TypeError(
                f"{type(model).__name__} has no layer stack that is known; give a causal language "
                "model of the Llama, Mistral, Qwen2, Qwen3 or GPT-2 family"
            )
        config = getattr(model, "config", None)
        for name in _CHANGES_LOGITS:
            if getattr(config, name, None) not in (None, 1, 1.0):
                raise TypeError(
                    f"{type(model).__name__} changes its logits by {name}="
                    f"{getattr(config, name)}, which its exits would lack; give a model without"
                )
        return cls(model, backbone, embedding, layers, norm, head)

    def logits(self, hidden: Tensor) -> Tensor:
        """``head(norm(h))`` of a state between blocks: ``[*, d] -> [*, V]``."""
        scores: Tensor = self.head(self.norm(hidden))
        return scores


__all__ = ["DecoderStack"]
