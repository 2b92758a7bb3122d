"""A script to be killed: trains every method at the same time, one process each, and never ends.

Processes are forked after the imports, which cost more than all the training.
"""

import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_kd import methods
from lightning_kd.methods import TaskModule
from tests import tiny
from tests.conformance.matrix import Watch, fit
from tests.kill import say

LAST = 12
"""Optimizer steps of a whole run; three make an epoch, each is one window of two batches."""


def train(
    name: str, folder: Path, ckpt_path: Path | None = None, watch: Watch | None = None
) -> TaskModule:
    """Train a tiny method of this name to the last step, writing every step to ``folder``."""
    module = tiny.method(name)
    fit(
        module,
        batch_size=2,
        accumulate_grad_batches=2,
        max_steps=LAST,
        folder=folder,
        ckpt_path=ckpt_path,
        callbacks=[] if watch is None else [watch],
    )
    return module


def _look(module: TaskModule) -> None:
    step = module.trainer.global_step
    say(f"{type(module).__name__} step {step}")
    time.sleep(1000 if step == LAST - 1 else 0.02)  # waits for the SIGKILL at the last


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in methods.METHODS:
        if os.fork() == 0:
            train(name, Path(sys.argv[1]) / name, watch=Watch(_look))
            os._exit(0)
    for _ in methods.METHODS:
        os.wait()
