"""Keys and values of one text: a buffer per block, written in place and cut in no time."""

from typing import Any

import torch
from torch import Tensor


class LayerCache:
    """What one block's attention remembers; the shape of `transformers.Cache` that it asks for.

    The buffers have their whole size from the first token on, so that a token writes its own row
    and copies nothing else. Every block has a length of its own: blocks that an early exit left out
    are behind.

    Args:
        capacity: Positions that there is room for.

    >>> cache = LayerCache(capacity=4)
    >>> keys, _ = cache.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    >>> keys.shape[2], cache.length
    (3, 3)
    >>> cache.crop(1)
    >>> cache.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))[0].flatten().tolist()
    [1.0, 1.0, 0.0, 0.0]
    """

    __slots__ = ("_keys", "_values", "capacity", "length")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append ``[1, heads, l, d]`` of each and return all so far, as views.

        Raises:
            IndexError: There is no room.
        """
        end = self.length + key_states.shape[2]
        if end > self.capacity:
            raise IndexError(f"there is room for {self.capacity} positions, got {end}")
        if self._keys is None or self._values is None:
            self._keys = _buffer(key_states, self.capacity)
            self._values = _buffer(value_states, self.capacity)
        self._keys[:, :, self.length : end] = key_states
        self._values[:, :, self.length : end] = value_states
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def crop(self, length: int) -> None:
        """Forget what is beyond so many positions."""
        self.length = min(self.length, length)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions so far, under the name that transformers asks by."""
        del layer_idx
        return self.length

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, as views.

        Raises:
            IndexError: There are none.
        """
        if self._keys is None or self._values is None:
            raise IndexError("nothing was cached yet")
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]


def _buffer(states: Tensor, capacity: int) -> Tensor:
    batch, heads, _, width = states.shape
    return torch.empty(batch, heads, capacity, width, dtype=states.dtype, device=states.device)


__all__ = ["LayerCache"]
