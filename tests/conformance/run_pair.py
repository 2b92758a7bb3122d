"""A script of two gloo processes that train every method on every task together.

They are forked after the imports, which cost more than all the training.
"""

import os
import socket
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_kd import methods
from tests import tiny
from tests.conformance.matrix import fit, weights


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
    )
    return weights(module)


def _train_all(folder: Path, rank: int) -> None:
    # as a launcher such as torchrun tells its processes who they are
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2")
    for name in methods.METHODS:
        for kind in filter(partial(tiny.claims, name), tiny.TASKS):
            torch.save(
                train(name, kind, batch_size=2, devices=2), folder / f"{name} {kind} {rank}.pt"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    other = os.fork()
    _train_all(Path(sys.argv[1]), 0 if other else 1)
    if other and os.waitpid(other, 0)[1] != 0:
        sys.exit("the second process failed")
