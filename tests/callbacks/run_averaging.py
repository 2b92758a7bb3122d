"""A script with averaging on: ``kill FOLDER`` trains until it is killed, ``pair FOLDER`` in DDP."""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_kd.callbacks import StudentAveraging
from lightning_kd.methods import TaskModule
from tests import tiny
from tests.callbacks.counting import Counter
from tests.conformance.matrix import Watch, fit, weights
from tests.kill import say

METHODS = ("DyLoRA", "VanillaKD")
LAST = 12
"""Optimizer steps of a run; three make an epoch, averaging begins after four."""


class Normalized(Counter):
    """A student with a BatchNorm layer; inputs have mean 3 and variance 4."""

    def __init__(self) -> None:
        super().__init__(batches=4)
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5), nn.Linear(1, 1))
        self.forwards = 0

    @property
    def norm(self) -> nn.BatchNorm1d:
        layer = self.student.get_submodule("0")
        assert isinstance(layer, nn.BatchNorm1d)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.student(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.student(batch["x"]) - 1).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.norm.running_mean.item())  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.student.parameters(), lr=0.01)

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(1)
        rows = [{"x": 3 + 2 * torch.randn(1, generator=generator)} for _ in range(2560)]
        return torch.utils.data.DataLoader(rows, batch_size=64, shuffle=True)  # type: ignore[arg-type]


def train(
    name: str, folder: Path, ckpt_path: Path | None = None, watch: Watch | None = None
) -> tuple[TaskModule, StudentAveraging]:
    """Train a tiny method to the last step, writing every step to ``folder``."""
    module = tiny.method(name, learning_rate=0.02)
    averaging = StudentAveraging(start_after=4)
    fit(
        module,
        batch_size=2,
        accumulate_grad_batches=2,
        max_steps=LAST,
        folder=folder,
        ckpt_path=ckpt_path,
        callbacks=[averaging] if watch is None else [averaging, watch],
    )
    return module, averaging


def _look(module: TaskModule) -> None:
    step = module.trainer.global_step
    say(f"{type(module).__name__} step {step}")
    time.sleep(1000 if step == LAST - 1 else 0.02)  # waits for the SIGKILL at the last


def _kill(folder: Path) -> None:
    for name in METHODS:
        if os.fork() == 0:
            train(name, folder / name, watch=Watch(_look))
            os._exit(0)
    for _ in METHODS:
        os.wait()


def _pair(folder: Path, rank: int) -> None:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2")
    settings: dict[str, Any] = {"strategy": "ddp", "devices": 2}
    found: dict[str, Any] = {}
    for name in METHODS:
        torch.manual_seed(rank)
        module, averaging = tiny.method(name, learning_rate=0.02), StudentAveraging(start_after=1)
        fit(module, batch_size=2, max_steps=5, callbacks=[averaging], **settings)
        found[name] = {"weights": weights(module), "num": averaging.num_averaged}
    other = Normalized()
    tiny.trainer(StudentAveraging(start_after=0), max_epochs=1, **settings).fit(other)
    found["Normalized"] = {"weights": weights(other), "num": other.forwards}
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "kill":
        _kill(Path(sys.argv[2]))
        sys.exit()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    child = os.fork()
    _pair(Path(sys.argv[2]), 0 if child else 1)
    if child and os.waitpid(child, 0)[1] != 0:
        sys.exit("the second process failed")
