"""A script of two gloo processes that record one trajectory, interrupted after the first epoch.

record_pair.py FOLDER
"""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_kd.callbacks import TrajectoryRecorder
from lightning_kd.run_checkpoints import run_checkpoints
from tests import tiny
from tests.conformance.matrix import TinyData, trainer


def record(folder: Path, epochs: int, batch_size: int, **more: Any) -> TrajectoryRecorder:
    """Train to the end of so many epochs, from where an earlier call ended."""
    torch.manual_seed(0)
    module = tiny.method("FineTuning", learning_rate=0.01)
    recorder = TrajectoryRecorder(folder / "path", every_n_steps=2)
    callbacks = [recorder, *run_checkpoints(folder / "checkpoints", module.monitor, 1)]
    last = folder / "checkpoints" / "last.ckpt"
    made = trainer(callbacks=callbacks, max_epochs=epochs, enable_checkpointing=True, **more)
    made.fit(
        module,
        datamodule=TinyData(module.task, batch_size),
        ckpt_path=last if last.exists() else None,
    )
    return recorder


def _both(folder: Path, rank: int) -> None:
    # as a launcher such as torchrun tells its processes who they are
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2")
    for epochs in (1, 2):
        recorder = record(folder, epochs, batch_size=2, devices=2, strategy="ddp")
    torch.save(recorder.state_dict(), folder / f"{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    other = os.fork()
    _both(Path(sys.argv[1]), 0 if other else 1)
    if other and os.waitpid(other, 0)[1] != 0:
        sys.exit("the second process failed")
