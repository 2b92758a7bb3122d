"""A script to be killed: Annealing-KD with a teacher to train, held up where a kill hurts most.

    run_phases_killed.py FOLDER

One process for each of `WAYS`; none of them ends.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_kd import checkpoint_io, phases
from lightning_kd.methods import AnnealingKD
from lightning_kd.outcome import Outcome
from lightning_kd.teacher_cache import TeacherCache
from tests.kill import say
from tests.recipes.command import Site

SETTINGS = {
    "model.max_temperature": 2,
    "model.teacher_epochs": 2,
    "model.label_epochs": 1,
    "model.teacher_cache": "run",
    "model.student_layers": 1,
    "trainer.max_epochs": 3,
    "trainer.accumulate_grad_batches": 2,
    "save_every_n_steps": 1,
    "teacher.epochs": 1,
    "teacher.learning_rate": 0.02,
}
"""Eight batches and four optimizer steps an epoch; the second has its answers in the cache."""


def _wait(way: str) -> NoReturn:
    say(f"in {way}")
    while True:
        time.sleep(1)


def _exporting(way: str) -> None:
    """The teacher is trained, and nothing of its export is there."""
    Outcome.finish = lambda *_, **__: _wait(way)  # type: ignore[method-assign]


def _capturing(way: str) -> None:
    """Half of a batch's answers are in the cache, inside an accumulation window."""
    keep, calls = TeacherCache.keep, []

    def half(self: TeacherCache, batch: Any, answers: Any) -> None:
        calls.append(1)
        if len(calls) == 6:
            keep(self, {"idx": batch["idx"][:2]}, answers[:2])
            _wait(way)
        keep(self, batch, answers)

    TeacherCache.keep = half  # type: ignore[method-assign]


def _at(phase: str, epoch: int, batch: int) -> Callable[[str], None]:
    """In a batch of an epoch of a phase; odd ones are inside an accumulation window."""

    def hold_up(way: str) -> None:
        step = AnnealingKD.training_step

        def training_step(self: AnnealingKD, batch_: Any, batch_idx: int) -> Any:
            if (self.phase, self.current_epoch, batch_idx) == (phase, epoch, batch):
                _wait(way)
            return step(self, batch_, batch_idx)

        AnnealingKD.training_step = training_step  # type: ignore[assignment, method-assign]

    return hold_up


def _recording(way: str) -> None:
    """The first phase is done, and half of its record is written."""
    write = checkpoint_io.write_atomically

    def half(fill: Callable[[IO[bytes]], object], path: str | Path) -> None:
        def some(file: IO[bytes]) -> None:
            file.write(b'{"phases": [')
            file.flush()
            _wait(way)

        write(some, path)

    vars(phases)["write_atomically"] = half


def _selecting(way: str) -> None:
    """Both phases are done, and the best of them has not got its name yet."""
    link = os.link

    def then_wait(source: Path, target: Path) -> None:
        link(source, target)
        if "best.ckpt" in Path(target).name:
            _wait(way)

    os.link = then_wait  # type: ignore[assignment]


WAYS: dict[str, Callable[[str], None]] = {
    "exporting": _exporting,
    "capturing": _capturing,
    "cached": _at("teacher", 1, 3),
    "recording": _recording,
    "recorded": _at("labels", 0, 1),
    "selecting": _selecting,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name, hold_up in WAYS.items():
        if os.fork() == 0:
            hold_up(name)
            own = Site(folder / name, folder / "model", folder / "data")
            own.folder.mkdir()
            own.fit("annealing_kd_glue", **SETTINGS)
            os._exit(0)
    for _ in WAYS:
        os.wait()
