"""Statistics of BatchNorm layers for weights that never saw a batch, such as an average."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["batch_norm_layers", "refresh_batch_norm"]


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The layers that keep running statistics of their inputs."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def refresh_batch_norm(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], object]
) -> int:
    """Measure the running statistics anew: the mean over batches of each batch's mean and variance.

    Everything but the BatchNorm layers is in eval mode meanwhile, so that no dropout adds variance
    and no random number is drawn here. A model without such layers runs no batch.

    Args:
        model: Its statistics are replaced; modes and momenta are put back.
        batches: Training data.
        forward: Runs the model on one of the batches.

    Returns:
        Batches that were run.

    >>> layer = nn.BatchNorm1d(1)
    >>> data = [torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [4.0]])]
    >>> refresh_batch_norm(layer, data, layer)
    2
    >>> layer.running_mean, layer.running_var
    (tensor([3.]), tensor([5.]))
    """
    layers = batch_norm_layers(model)
    if not layers:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    count = 0
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for a plain mean over batches
        for batch in batches:
            forward(batch)
            count += 1
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return count
