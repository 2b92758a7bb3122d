"""How many bytes are alive at every moment of a training step, and what they are for."""

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from typing_extensions import override

ACTIVATIONS, GRADIENTS, LOGITS = "activations", "gradients", "logits"


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the block, counts the storages that operations make until they are freed.

    What autograd keeps, what the loss needs and what a step makes and drops at once are seen alike,
    each storage once however many views there are of it. Storages made before the block are not
    counted, and neither is what a kernel needs inside itself.

    Args:
        vocabulary: Width of the last axis by which logits are told from other activations.

    Attributes:
        history: `now`, each time that something was made.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.live: Counter[str] = Counter()
        self.history: list[tuple[int, int, int]] = []
        self._known: dict[int, tuple[int, str]] = {}
        self._references: dict[int, Any] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out storages that are there already: weights and inputs."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()._cdata] = 0, ACTIVATIONS
            self._watch(tensor)

    def is_gradient(self, tensor: Tensor) -> None:
        """Move a storage to the gradients."""
        key = tensor.untyped_storage()._cdata
        size, kind = self._known.get(key, (0, ""))
        if size:
            self._known[key] = size, GRADIENTS
            self.live[kind] -= size
            self.live[GRADIENTS] += size

    @property
    def now(self) -> tuple[int, int, int]:
        """Bytes of activations, gradients and logits that are alive."""
        return self.live[ACTIVATIONS], self.live[GRADIENTS], self.live[LOGITS]

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in tree_iter(made):
            if isinstance(item, Tensor):
                self._count(item)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        wide = tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary
        kind = LOGITS if wide else ACTIVATIONS
        size = storage.nbytes()
        self._known[key] = size, kind
        self._watch(tensor)
        self.live[kind] += size
        self.history.append(self.now)

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._references[key] = weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        size, kind = self._known.pop(key)
        del self._references[key]
        self.live[kind] -= size


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, each once.

    >>> import torch
    >>> one = torch.ones(4, 4)
    >>> tensor_bytes([one, one.t(), one[1:]])
    64
    """
    sizes = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


__all__ = ["ACTIVATIONS", "GRADIENTS", "LOGITS", "LiveBytes", "tensor_bytes"]
