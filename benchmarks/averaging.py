"""What does averaging the weights after every step cost?

A training step of the MiniLM encoder on real reviews (forward, backward, AdamW), with
`StudentAveraging` per step, without it, and with Lightning's ``WeightAveraging``. All train one and
the same network with one optimizer state, so that where things lie in memory is the same for all;
each system takes each batch once. Then the bytes of a checkpoint, in copies of the student: of a
Trainer's own files after two steps.

The ratio wanted is a few hundredths from 1 while single steps differ by more than that, so there
are many rounds, and the 95 % interval of the median (from the order statistics, without assuming a
law) is printed with it. Processor seconds of one thread are what counts by default: a busy machine
changes them less than the wall clock. The time of the snapshot alone, divided by that of the step
it follows, is measured within the same steps and is the sharper figure.

    python benchmarks/averaging.py
    python benchmarks/averaging.py --clock wall --threads 2
"""

import argparse
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.common import Check, Spread, interleaved, parser, ratio, report, start
from lightning_kd.callbacks import StudentAveraging
from lightning_kd.data import GLUE
from lightning_kd.methods import FineTuning
from lightning_kd.models import load_model
from lightning_kd.tasks import task_named

Batch = dict[str, Tensor]


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, rounds=60)
    made.add_argument("--data_dir", default="assets/reviews", help="reviews in SST-2's format")
    made.add_argument("--batch_size", type=int, default=32)
    made.add_argument("--max_length", type=int, default=128)
    made.set_defaults(clock="cpu", threads=1)
    return made.parse_args()


def review_batches(given: argparse.Namespace, count: int) -> list[Batch]:
    """The first training batches of the reviews."""
    data = GLUE(
        "sst2",
        tokenizer=given.student,
        data_dir=given.data_dir,
        batch_size=given.batch_size,
        max_length=given.max_length,
    )
    data.prepare_data()
    data.setup("fit")
    batches = iter(data.train_dataloader())
    return [next(batches) for _ in range(count)]


def module_of(given: argparse.Namespace) -> FineTuning:
    """MiniLM in training mode."""
    torch.manual_seed(given.seed)
    module = FineTuning(load_model(given.student, task_named("sst2")), "sst2", learning_rate=1e-5)
    module.student.train()
    return module


class Step:
    """A training step with one of the callbacks, or none, called as the Trainer would call it."""

    def __init__(
        self,
        module: FineTuning,
        states: torch.optim.Optimizer,
        batches: Sequence[Batch],
        callback: L.Callback | None,
    ) -> None:
        self.module, self.callback = module, callback
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)
        self.optimizer.state = states.state  # only the hooks are its own
        self.turns = iter([*batches] * 10**4)
        self.state = SimpleNamespace(
            global_step=0, optimizers=[self.optimizer], current_epoch=0, is_last_batch=False
        )
        self.trainer = cast("L.Trainer", self.state)
        if isinstance(callback, StudentAveraging):
            callback.on_train_start(self.trainer, module)
        elif callback is not None:
            callback.setup(self.trainer, module, "fit")

    def __call__(self) -> None:
        """One step."""
        batch = next(self.turns)
        self.optimizer.zero_grad()
        torch.autograd.backward(sum(self.module.objective(batch).values(), torch.zeros(())))
        self.optimizer.step()
        self.state.global_step += 1
        if self.callback is not None:
            self.callback.on_train_batch_end(self.trainer, self.module, {}, batch, 0)


class Timed:
    """Wraps a function and keeps the seconds of its calls."""

    def __init__(self, function: Callable[[], None], clock: Callable[[], float]) -> None:
        self.function, self.clock = function, clock
        self.seconds: list[float] = []

    def __call__(self) -> None:
        """Call it."""
        begin = self.clock()
        self.function()
        self.seconds.append(self.clock() - begin)


def interval(values: Sequence[float]) -> list[float]:
    """A 95 % confidence interval of the median: two order statistics.

    >>> interval([float(i) for i in range(1, 26)])
    [8.0, 18.0]
    """
    count = len(values)
    below, rank = 0.5**count, 0  # P(at most `rank` values are under the median)
    while below + math.comb(count, rank + 1) * 0.5**count <= 0.025:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    ordered = sorted(values)
    return [round(ordered[rank], 4), round(ordered[-1 - rank], 4)]


def file_bytes(given: argparse.Namespace, batches: list[Batch], *callbacks: L.Callback) -> int:
    """Size of the checkpoint that a Trainer writes after two steps."""
    with tempfile.TemporaryDirectory() as name:
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=name,
            callbacks=[*callbacks, ModelCheckpoint(name, "last", every_n_train_steps=2)],
        )
        trainer.fit(module_of(given), DataLoader(batches[:2], batch_size=None))  # type: ignore[arg-type]
        return (Path(name) / "last.ckpt").stat().st_size


def main() -> None:
    """Measure and report."""
    given = options()
    start(given)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    batches = review_batches(given, 8)
    ours = StudentAveraging(start_after=0, lr_mode="none")
    module = module_of(given)
    states = torch.optim.AdamW(module.parameters())
    systems = {
        "StudentAveraging": Step(module, states, batches, ours),
        "plain": Step(module, states, batches, None),
        "WeightAveraging": Step(module, states, batches, WeightAveraging()),
    }
    clock = process_time if given.clock == "cpu" else perf_counter
    assert ours.mean is not None  # noqa: S101 - on_train_start has made it
    snapshot = Timed(ours.mean.add, clock)
    ours.mean.add = snapshot  # type: ignore[method-assign]
    seconds = interleaved(systems, given)
    print("milliseconds per step")
    for name, values in seconds.items():
        print(f"{name:>16} | {Spread.of(values).scaled(1e3)}")
    with_, without = seconds["StudentAveraging"], seconds["plain"]
    taken = snapshot.seconds[-len(with_) :]
    print(f"{'snapshot alone':>16} | {Spread.of(taken).scaled(1e3)}")
    pairs = [a / b for a, b in zip(with_, without, strict=True)]
    print(f"median of step / plain step, 95 % interval: {interval(pairs)}")

    student = 4 * sum(p.numel() for p in module.student.parameters())
    plain = file_bytes(given, batches)
    copies = {
        name: (file_bytes(given, batches, callback) - plain) / student
        for name, callback in (
            ("ours", StudentAveraging(start_after=0, lr_mode="none")),
            ("theirs", WeightAveraging()),
        )
    }
    print(f"copies of the student that a checkpoint holds besides: {copies}")
    shares = [step / (step - own) for step, own in zip(with_, taken, strict=True)]
    report(
        "averaging",
        Check("step with averaging / plain step", ratio(with_, without), 1.03),
        Check("step with its snapshot / the rest of it", Spread.of(shares), 1.03),
        Check("step / Lightning's WeightAveraging", ratio(with_, seconds["WeightAveraging"]), 1.0),
        Check("extra copies in a checkpoint", Spread.of([copies["ours"]]), 1.01),
        interval=interval(pairs),
        rounds=len(pairs),
        snapshot_ms=round(Spread.of(taken).median * 1e3, 3),
        lightning_copies=round(copies["theirs"], 3),
        threads=given.threads,
        clock=given.clock,
    )


if __name__ == "__main__":
    main()
