"""One of two gloo processes that train DyLoRA together; started by test_dylora_ddp.py.

Usage: python -m tests.methods.two_processes FOLDER, with LOCAL_RANK, MASTER_ADDR and MASTER_PORT in
the environment. Writes what it drew and how its adapter ended for each mode.
"""

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_kd.methods import DyLoRA
from tests import tiny

MODES: dict[str, dict[str, Any]] = {
    "global strict": {},
    "global full": {"update": "full"},
    "global dense": {"optimizer_semantics": "dense"},
    "per_process": {"rank_sync": "per_process", "optimizer_semantics": "dense"},
}


class Watch(L.Callback):
    """The rank of each step."""

    def __init__(self) -> None:
        self.ranks: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.ranks.append(pl_module.size)


def main(folder: Path) -> None:
    process = os.environ["LOCAL_RANK"]
    found = {}
    for mode, settings in MODES.items():
        torch.manual_seed(int(process))  # equal seeds are nothing to rely on
        module = tiny.filled(
            DyLoRA(
                tiny.model(),
                tiny.TASKS["classification"],
                max_rank=4,
                learning_rate=0.01,
                **settings,
            ),
        )
        watch = Watch()
        trainer = tiny.trainer(
            watch, strategy="ddp", devices=2, max_steps=20, max_epochs=-1, limit_val_batches=0
        )
        trainer.fit(module, tiny.loader(40, batch_size=4), tiny.loader())
        found[mode] = {"ranks": watch.ranks, "weights": module.state_dict()}
    torch.save(found, folder / f"{process}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
