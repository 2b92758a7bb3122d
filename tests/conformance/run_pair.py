"""A script of two gloo processes that train every method on every task together.

They are forked after the imports, which cost more than all the training.
"""

import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_kd import methods
from lightning_kd.methods import VanillaKD
from tests import tiny
from tests.conformance.matrix import differing, fit, frozen_networks, trainable, weights


class Hidden(L.Callback):
    """Fails where a process trains or synchronizes anything of a teacher, or wakes it."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.networks = [network.module for network in frozen_networks(pl_module)]
        self.before = [weights(network) for network in self.networks]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object
    ) -> None:
        assert not any(m.training for network in self.networks for m in network.modules())
        assert all(m.training for m in pl_module.get_submodule("student").modules())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for network, old in zip(self.networks, self.before, strict=True):
            assert differing(old, weights(network)) == []
        theirs = {id(p) for network in self.networks for p in network.parameters()}
        assert not theirs & {id(p) for p in pl_module.parameters()}
        held = [p for o in trainer.optimizers for group in o.param_groups for p in group["params"]]
        assert not theirs & {id(p) for p in held}
        if trainer.world_size > 1:
            self._check_buckets(trainer.model, pl_module)

    def _check_buckets(self, ddp: object, module: L.LightningModule) -> None:
        assert isinstance(ddp, torch.nn.parallel.DistributedDataParallel)
        sizes = ddp._get_ddp_logging_data()["bucket_sizes"]
        in_buckets = sum(int(size) for size in str(sizes).split(","))
        assert in_buckets == sum(p.nbytes for p in trainable(module).values())


def train(name: str, kind: str, batch_size: int, devices: int) -> dict[str, Tensor]:
    """Weights after some optimizer steps of two batches each; ``batch_size`` is per process."""
    torch.manual_seed(0)
    module = tiny.method(name, tiny.TASKS[kind], batch_norm=False, learning_rate=0.01)
    fit(
        module,
        batch_size=batch_size,
        accumulate_grad_batches=2,
        devices=devices,
        strategy="auto" if devices == 1 else "ddp",
        precision="64-true",
        max_steps=5,
        callbacks=[Hidden()],
    )
    return weights(module)


def taught(kind: str, cache: Path | None, devices: int) -> dict[str, Tensor]:
    """Weights after four shuffled epochs with a live teacher, or with its answers in a cache."""
    torch.manual_seed(0)
    kept = None if cache is None else str(cache)
    module = tiny.method("VanillaKD", tiny.TASKS[kind], learning_rate=0.01, teacher_cache=kept)
    assert isinstance(module, VanillaKD)
    ways: Any = {"devices": devices, "strategy": "auto" if devices == 1 else "ddp"}
    fit(module, batch_size=2, max_epochs=4, **ways)
    assert cache is None or (module.cache is not None and module.cache.complete)
    return weights(module)


def _train_all(folder: Path, rank: int) -> None:
    # as a launcher such as torchrun tells its processes who they are
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2")
    for name in methods.METHODS:
        for kind in filter(partial(tiny.claims, name), tiny.TASKS):
            torch.save(
                train(name, kind, batch_size=2, devices=2), folder / f"{name} {kind} {rank}.pt"
            )
    for kind in tiny.CACHED:
        cache = folder / f"cache of {kind}"
        ways = {"live": None, "capturing": cache, "cached": cache}
        found = {way: taught(kind, kept, devices=2) for way, kept in ways.items()}
        torch.save(found, folder / f"taught {kind} {rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    other = os.fork()
    _train_all(Path(sys.argv[1]), 0 if other else 1)
    if other and os.waitpid(other, 0)[1] != 0:
        sys.exit("the second process failed")
