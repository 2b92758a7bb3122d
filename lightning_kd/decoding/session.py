"""One text on its way through some blocks of a decoder: embedding, positions, masks, cache.

The blocks are transformers' own modules, called one by one. Its models run all of them and take the
first one's cache for the length of all; here every block knows its own position.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_kd.decoding.cache import LayerCache
from lightning_kd.nn import DecoderStack

FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
_CHANGING_ROPE = ("dynamic", "longrope")


class Session:
    """State of decoding one text (batch 1) with any of a model's depths.

    Depths count blocks: ``run(h, 0, 12)`` is the first twelve, exit 12.

    Args:
        model: A causal language model of transformers, of one of `FAMILIES`; in evaluation mode.
        capacity: Positions in all, prompt and answer.

    Raises:
        TypeError: The model is of another family.
        ValueError: More positions than its context, or an attention whose masks are unknown here.
    """

    def __init__(self, model: nn.Module, capacity: int) -> None:
        self.stack = DecoderStack.of(model)
        self._config: Any = self.stack.model.config
        kind = getattr(self._config, "model_type", None)
        if kind not in FAMILIES:
            raise TypeError(
                f"the blocks of {type(model).__name__} (model_type {kind}) are not known here; "
                f"give a model of {', '.join(FAMILIES)}"
            )
        self._check_context(capacity)
        self._attention = self._config._attn_implementation
        if self._attention not in ("sdpa", "eager"):
            raise ValueError(
                f"decoding block by block needs attn_implementation sdpa or eager, got "
                f"{self._attention}; load the model with one of them"
            )
        self.capacity = capacity
        self.depth = len(self.stack.layers)
        self.cache = [LayerCache(capacity) for _ in range(self.depth)]
        self._device = self.stack.embedding.weight.device
        self._windows = [self._window(index) for index in range(self.depth)]
        self._rotary = self._rotations(capacity)

    def embed(self, tokens: Tensor, start: int) -> Tensor:
        """``h_0 [1, l, d]`` of tokens ``[l]`` at positions ``start`` and on."""
        hidden: Tensor = self.stack.embedding(tokens[None])
        if self._rotary is None:  # GPT-2 learns its positions
            hidden = hidden + self.stack.backbone.wpe.weight[start : start + len(tokens)]
        return hidden

    def run(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Blocks ``first`` to ``last`` (exclusive, from 0) on the positions that come next in them.

        Args:
            hidden: ``[1, l, d]``, the states after ``first`` blocks.
            first: Blocks that were already run on these.
            last: Blocks that will have been.

        Raises:
            IndexError: There is no room.
            RuntimeError: These blocks are not at one position; what was left out comes first.
        """
        if first == last:
            return hidden
        start = self.cache[first].length
        end = start + hidden.shape[1]
        if end > self.capacity:
            raise IndexError(f"there is room for {self.capacity} positions, got {end}")
        if any(cache.length != start for cache in self.cache[first:last]):
            lengths = [cache.length for cache in self.cache[first:last]]
            raise RuntimeError(f"blocks {first + 1} to {last} are at positions {lengths}; catch up")
        options: dict[str, Any] = {"use_cache": True}
        if self._rotary is not None:
            cos, sin = self._rotary
            options["position_embeddings"] = cos[:, start:end], sin[:, start:end]
        masks: dict[int | None, Tensor | None] = {}
        for index in range(first, last):
            window = self._windows[index]
            if window not in masks:
                masks[window] = self._mask(start, end, window)
            hidden = self.stack.layers[index](
                hidden,
                attention_mask=masks[window],
                past_key_values=self.cache[index],
                **options,
            )
        return hidden

    def crop(self, length: int) -> None:
        """Forget positions beyond ``length`` in every block."""
        for cache in self.cache:
            cache.crop(length)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[l, V]`` of states ``[1, l, d]`` after any number of blocks."""
        return self.stack.logits(hidden)[0]

    def tokens(self, values: Any) -> Tensor:
        """Token numbers as a tensor ``[l]`` where the model is."""
        return torch.as_tensor(values, dtype=torch.long, device=self._device)

    @property
    def context(self) -> int | None:
        """Positions that there may be, with rotations that do not change; None: any number."""
        whole: int | None = getattr(self._config, "max_position_embeddings", None)
        rope = self._rope
        if rope.get("rope_type") not in _CHANGING_ROPE:
            return whole
        original: int | None = rope.get("original_max_position_embeddings", whole)
        return original if whole is None or original is None else min(whole, original)

    @property
    def _rope(self) -> dict[str, Any]:
        return getattr(self._config, "rope_parameters", None) or {}

    def _check_context(self, capacity: int) -> None:
        whole, stable = getattr(self._config, "max_position_embeddings", None), self.context
        if whole is not None and capacity > whole:
            raise ValueError(
                f"prompt and answer take {capacity} positions, the model has {whole}; give a "
                "shorter prompt or fewer max_new_tokens"
            )
        if stable is not None and capacity > stable:
            raise ValueError(
                f"{self._rope['rope_type']} rotations change beyond {stable} positions, got "
                f"{capacity}; give a shorter prompt or fewer max_new_tokens"
            )

    def _window(self, index: int) -> int | None:
        """Positions that block ``index`` sees, itself among them; None: all."""
        kinds = getattr(self._config, "layer_types", None)
        if kinds and kinds[index] != "sliding_attention":
            return None
        window: int | None = getattr(self._config, "sliding_window", None)
        return window

    def _rotations(self, capacity: int) -> tuple[Tensor, Tensor] | None:
        rotary = getattr(self.stack.backbone, "rotary_emb", None)
        if rotary is None:
            return None
        weight = self.stack.embedding.weight
        positions = torch.arange(capacity, device=self._device)[None]
        cos, sin = rotary(weight.new_empty(0), position_ids=positions)
        return cos, sin

    def _mask(self, start: int, end: int, window: int | None) -> Tensor | None:
        """Which keys each of the positions sees; None where that is all there are."""
        whole = window is None or end <= window
        if end - start == 1 and whole:
            return None
        if start == 0 and whole and self._attention == "sdpa":
            return None  # a prompt: the kernel's own causal mask
        keys = torch.arange(end, device=self._device)
        queries = torch.arange(start, end, device=self._device)[:, None]
        seen = keys <= queries
        if window is not None:
            seen &= keys > queries - window
        if self._attention == "sdpa":
            return seen[None, None]
        dtype = self.stack.embedding.weight.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=self._device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[None, None]


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Without gradients and dropout; the model's mode is put back."""
    modes = [(module, module.training) for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


__all__ = ["FAMILIES", "Session", "inference"]
