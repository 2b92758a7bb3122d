"""The mean of a network's weights over snapshots, and changing places with it.

`lightning_kd.callbacks.StudentAveraging` decides when; here is what is held and how it is swapped.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_kd.functional import running_mean_
from lightning_kd.nn import batch_norm_layers

__all__ = ["WeightMean", "Weights"]

Weights = Literal["average", "raw"]


class WeightMean:
    """Mean of a module's trainable parameters over snapshots, by name, in single precision.

    Which parameters they are is settled by the first snapshot: those that require gradients then.
    The extra memory is one copy of them, none before the first snapshot; while the average is in
    the module, the raw weights lie where the mean was (half-precision weights: in a copy of their
    own). Statistics of BatchNorm layers, which no mean of weights can give, are part of the swap
    once `keep_statistics` was called.

    Args:
        module: Holds the parameters; they stay the same objects.
        prefix: Put before every name, ``student.`` for instance.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> mean = WeightMean(layer)
    >>> for weight in (2.0, 3.0):
    ...     layer.weight.data.fill_(weight)
    ...     mean.add()
    tensor([[2.]])
    tensor([[3.]])
    >>> mean.swap()
    >>> layer.weight.item(), mean.raw["weight"].item()
    (2.5, 3.0)
    """

    def __init__(self, module: nn.Module, prefix: str = "") -> None:
        self.module, self.prefix = module, prefix
        self.num = 0
        self.swapped = False
        self._parameters: dict[str, nn.Parameter] = {}
        self._means: list[Tensor] = []
        self._raw: list[Tensor] = []  # of half-precision weights, while swapped
        self._statistics: dict[str, Tensor] = {}  # of the network that is not in the module

    def add(self) -> None:
        """Take a snapshot.

        Raises:
            ValueError: There is nothing that requires a gradient.
            RuntimeError: The average itself is in the module.
        """
        if self.swapped:
            raise RuntimeError("the average is in the module; swap back before the next snapshot")
        if not self._means:
            self._bind(name for name, p in self._named() if p.requires_grad)
        running_mean_(self._means, list(self._parameters.values()), self.num)
        self.num += 1

    def swap(self) -> None:
        """Exchange the module's weights and the mean; twice gives the same bits."""
        with torch.no_grad():
            for parameter, mean in zip(self._parameters.values(), self._means, strict=True):
                if parameter.dtype == mean.dtype:
                    _exchange(parameter, mean)
                elif self.swapped:
                    parameter.copy_(self._raw.pop(0))
                else:
                    self._raw.append(parameter.detach().clone())
                    parameter.copy_(mean)
            for name, buffer in self._buffers().items():
                if name in self._statistics:
                    _exchange(buffer, self._statistics[name])
        self.swapped = not self.swapped

    @property
    def average(self) -> dict[str, Tensor]:
        """The mean by full name, and the statistics that belong to it; not copied."""
        return self._found(in_module=self.swapped, wide=True)

    @property
    def raw(self) -> dict[str, Tensor]:
        """The weights that training goes on with, by full name; not copied."""
        return self._found(in_module=not self.swapped, wide=False)

    def names_in(self, owner: nn.Module) -> dict[str, str]:
        """Every name that ``owner`` has for what is averaged, to the name in `average` and `raw`.

        Tied weights have several names in a ``state_dict``.
        """
        mine = {id(p): self.prefix + name for name, p in self._parameters.items()}
        mine |= {id(b): self.prefix + n for n, b in self._buffers().items()}
        theirs = (
            *owner.named_parameters(remove_duplicate=False),
            *owner.named_buffers(remove_duplicate=False),
        )
        return {name: mine[id(tensor)] for name, tensor in theirs if id(tensor) in mine}

    def load(self, average: Mapping[str, Tensor], raw: Mapping[str, Tensor], num: int) -> None:
        """Take over what `average` and `raw` gave.

        Raises:
            ValueError: The module has no weight of a name, or another shape.
        """
        there = dict(self._named()) | self._all_buffers()
        cut = len(self.prefix)
        names = [name[cut:] for name in raw]
        wrong = [n for n in names if n not in there or there[n].shape != raw[self.prefix + n].shape]
        if wrong:
            raise ValueError(
                f"the average in the checkpoint is of {wrong[0]!r}, which the model has not, or in "
                "another shape; build it as it was when the checkpoint was written"
            )
        statistics = [n for n in names if not isinstance(there[n], nn.Parameter)]
        self._bind(n for n in names if n not in statistics)
        with torch.no_grad():
            for name in names:
                there[name].copy_(raw[self.prefix + name])
            for mean, name in zip(self._means, self._parameters, strict=True):
                mean.copy_(average[self.prefix + name])
        self._statistics = {
            n: average[self.prefix + n].to(there[n].device, copy=True) for n in statistics
        }
        self.num, self.swapped = num, False

    def to_devices(self) -> None:
        """Bring the mean to where the parameters are; they may have moved since it was loaded."""
        pairs = zip(self._parameters.values(), self._means, strict=True)
        self._means = [mean.to(parameter.device) for parameter, mean in pairs]
        buffers = self._all_buffers()
        self._statistics = {n: s.to(buffers[n].device) for n, s in self._statistics.items()}

    def keep_statistics(self) -> None:
        """From now on the average has statistics of its own, at first those of the module."""
        for name, buffer in self._all_buffers().items():
            self._statistics.setdefault(name, buffer.clone())

    def _bind(self, names: Iterable[str]) -> None:
        there = dict(self._named())
        self._parameters = {name: there[name] for name in names}
        if not self._parameters:
            raise ValueError("there is nothing to average: no weight requires a gradient")
        self._means = [
            torch.empty_like(p, dtype=torch.promote_types(p.dtype, torch.float32)).detach_()
            for p in self._parameters.values()
        ]

    def _named(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.module.named_parameters()  # of tied weights the first name

    def _all_buffers(self) -> dict[str, Tensor]:
        layers = batch_norm_layers(self.module)
        own = {id(buffer) for layer in layers for buffer in layer.buffers(recurse=False)}
        return {name: b for name, b in self.module.named_buffers() if id(b) in own}

    def _buffers(self) -> dict[str, Tensor]:
        return self._all_buffers() if self._statistics else {}

    def _found(self, *, in_module: bool, wide: bool) -> dict[str, Tensor]:
        """Weights and statistics of one of the two networks, from wherever they are just now."""
        found: dict[str, Tensor] = {}
        raw = iter(self._raw)
        for (name, parameter), mean in zip(self._parameters.items(), self._means, strict=True):
            same = parameter.dtype == mean.dtype
            kept = None if same or not self.swapped else next(raw)
            if same:
                value = parameter.detach() if in_module else mean
            elif wide:
                value = mean  # it never left, and is more exact than what is in the module
            else:
                value = parameter.detach() if kept is None else kept
            found[self.prefix + name] = value
        buffers = self._buffers()
        for name, kept_statistic in self._statistics.items():
            found[self.prefix + name] = buffers[name] if in_module else kept_statistic
        return found


def _exchange(tensor: Tensor, other: Tensor) -> None:
    value = tensor.detach().clone()
    tensor.copy_(other)
    other.copy_(value)
