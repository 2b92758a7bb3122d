"""A script to be killed: several runs of one recipe at the same time, none of which ends.

    run_killed.py FOLDER

``window`` stops inside an accumulation window, ``writing`` with a checkpoint half written, and
``anywhere`` goes on until it is killed.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_kd.methods import DyLoRA
from tests.kill import say
from tests.recipes.command import Site

WAYS = ("window", "writing", "anywhere")
SETTINGS = {
    "model.max_rank": 4,
    "trainer.accumulate_grad_batches": 2,
    "trainer.max_epochs": 4,
    "save_every_n_steps": 1,
}
"""Eight batches and four optimizer steps an epoch: sixteen steps in all."""


def _wait(what: str) -> NoReturn:
    say(what)
    while True:
        time.sleep(1)


def _stop(way: str) -> None:
    """Let the run come to where it waits for the kill."""
    step, save = DyLoRA.training_step, torch.save

    def training_step(self: DyLoRA, batch: Any, batch_idx: int) -> Any:
        done = self.trainer.global_step
        if way == "window" and done == 5 and batch_idx % 2 == 1:
            _wait("in window")
        if way == "anywhere":
            say(f"step {done}")
            time.sleep(0.02)
            if done == 14:
                _wait("at the end")
        return step(self, batch, batch_idx)

    def half(checkpoint: Any, file: Any) -> None:
        if way == "writing" and checkpoint["global_step"] == 7:
            file.write(b"PK half of a checkpoint")
            file.flush()
            _wait("in writing")
        save(checkpoint, file)

    DyLoRA.training_step = training_step  # type: ignore[assignment, method-assign]
    torch.save = half  # type: ignore[assignment]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for way in WAYS:
        if os.fork() == 0:
            _stop(way)
            own = Site(folder / way, folder / "model", folder / "data")
            own.folder.mkdir()
            own.fit("dylora_glue", **SETTINGS)
            os._exit(0)
    for _ in WAYS:
        os.wait()
