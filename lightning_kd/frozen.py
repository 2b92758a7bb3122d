"""A network that takes part in the computation and in nothing else: the teacher's wrapper.

Registering a teacher as a submodule puts it into the optimizer's reach, DDP's buckets, every
checkpoint, weight averaging and ``train()``. :class:`Frozen` keeps it out of PyTorch's registry.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

__all__ = ["Frozen"]


class Frozen(nn.Module):
    """Hides a module: no parameters, no state, always in eval mode, shared by copies.

    The shell itself is a module without parameters, so a ``LightningModule`` may hold it as an
    attribute; devices and dtypes reach the inner module through it. The shell's own ``training``
    flag follows the owner's (Lightning warns of submodules in eval mode); the inner module's does
    not. Gradients flow through to the *inputs*; use :meth:`teach` where nobody needs them.

    Args:
        module: The network to freeze, in place; also one with 4-bit weights.

    >>> frozen = Frozen(nn.Linear(2, 3))
    >>> len(list(frozen.parameters())), len(frozen.state_dict())
    (0, 0)
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        module.requires_grad_(requires_grad=False).eval()
        self.__dict__["_hidden"] = module  # plain assignment would register it

    @property
    def module(self) -> nn.Module:
        """The frozen network itself, for its configuration or its layers."""
        module: nn.Module = self.__dict__["_hidden"]
        return module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the frozen network; differentiable with respect to its inputs."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def teach(self, *args: Any, **kwargs: Any) -> Any:
        """Call the frozen network without building a graph."""
        return self.module(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `to`, `cuda`, `half` ... all end here, for the owner and for its submodules
        if recurse:
            self.module._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        return Frozen(self.module)  # averaging and sweeps copy students; one teacher is enough

    def extra_repr(self) -> str:
        """Name and size of what is inside, which the usual listing of children cannot show."""
        size = sum(parameter.numel() for parameter in self.module.parameters())
        return f"{type(self.module).__name__}, {size:,} frozen parameters"
