"""Training data for the BatchNorm statistics of an average, beside the training that uses them."""

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd.nn import batch_norm_layers, refresh_batch_norm

__all__ = ["refresh_statistics"]


def refresh_statistics(
    trainer: L.Trainer, pl_module: L.LightningModule, network: nn.Module
) -> None:
    """One pass over the training data for the BatchNorm layers of ``network``, if it has some.

    The training's own loader, sampler position and random numbers are as before afterwards;
    processes share what they found.
    """
    layers = batch_norm_layers(network)
    if not layers:
        return
    with _random_numbers_kept(), trainer.precision_plugin.forward_context():
        refresh_batch_norm(network, _batches(trainer), lambda batch: _forward(pl_module, batch))
    if trainer.world_size > 1:
        for layer in layers:
            for statistic in (layer.running_mean, layer.running_var):
                if statistic is not None:
                    statistic.copy_(trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))


def _batches(trainer: L.Trainer) -> Iterator[Any]:
    loader: Any = trainer.train_dataloader
    if isinstance(loader, dict | list | tuple):
        raise TypeError(
            "BatchNorm statistics of an average need one training loader, this training has "
            f"{len(loader)}; give it one, or a model without BatchNorm"
        )
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)  # of a copy, the position is another one
        loader.__dict__["_iterator"] = None  # nor does it share persistent workers
    limit = trainer.num_training_batches
    batches: Iterable[Any] = islice(loader, int(limit) if limit != float("inf") else None)
    return (trainer.strategy.batch_to_device(batch) for batch in batches)


def _forward(pl_module: L.LightningModule, batch: Any) -> None:
    """Run a batch as evaluation would: by the method's ``predict``, or the module's ``forward``."""
    predict = getattr(pl_module, "predict", None)
    if callable(predict):
        predict(batch)
    elif isinstance(batch, dict):
        kinds = signature(pl_module.forward).parameters
        named = {name: batch[name] for name in kinds if name in batch}
        takes_all = any(kind.kind is Parameter.VAR_KEYWORD for kind in kinds.values())
        pl_module(**batch) if takes_all else pl_module(**named) if named else pl_module(batch)
    else:
        pl_module(batch[0] if isinstance(batch, list | tuple) else batch)


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """A loader that shuffles draws from the global generators."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
