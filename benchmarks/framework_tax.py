"""What do TaskModule and Trainer cost over a hand-written loop that does the same?

Both train DyLoRA on the first layers of the MiniLM encoder, with the same batches, the strict
AdamW, the schedule, a rank drawn for every step, and loss and gradient norm every ten steps in a
CSV file. The Trainer is set up as recipes set it up: CSV and TensorBoard loggers, Rich's progress
bar (not on a terminal unless ``--terminal``), three checkpoint callbacks (that do not fire while
it is measured). A callback stops it every ``--segment`` steps to run as many steps by hand, so that
both share whatever the machine does.

    python benchmarks/framework_tax.py
    python benchmarks/framework_tax.py --rounds 5 --terminal
    python benchmarks/framework_tax.py --bare   # Lightning alone: nothing of ours
"""

import argparse
import csv
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from benchmarks.common import Check, Spread, parser, ratio, report, start, token_batches
from lightning_kd.checkpoint_io import AtomicCheckpointIO
from lightning_kd.loggers import Events, MetricsFile
from lightning_kd.methods import DyLoRA
from lightning_kd.models import load_model
from lightning_kd.optim import lr_scheduler
from lightning_kd.tasks import task_named

LOG_EVERY = 10
SHORTEST_STEP = 0.020
Batch = dict[str, Tensor]


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, rounds=30)
    made.add_argument("--segment", type=int, default=LOG_EVERY, help="steps between two turns")
    made.add_argument("--layers", type=int, default=2, help="of the encoder")
    made.add_argument("--batch_size", type=int, default=8)
    made.add_argument("--length", type=int, default=32)
    made.add_argument("--bare", action="store_true", help="a Trainer with nothing of ours")
    made.add_argument("--terminal", action="store_true", help="draw the bar as on a terminal")
    return made.parse_args()


def dylora(given: argparse.Namespace) -> DyLoRA:
    """DyLoRA on the first layers of the encoder."""
    torch.manual_seed(given.seed)
    student: Any = load_model(given.student, task_named("sst2"))
    student.bert.encoder.layer = student.bert.encoder.layer[: given.layers]
    student.train()
    return DyLoRA(student=student, task="sst2")


def by_hand(module: DyLoRA, loader: DataLoader[Any], max_steps: int, file: Path) -> Iterator[None]:
    """The loop without a framework; every ``next`` is one step."""
    optimizer = module.make_optimizer()
    scheduler = lr_scheduler(optimizer, "linear", 0.06, max_steps)
    parameters = [p for p in module.parameters() if p.requires_grad]
    with file.open("w") as lines:
        writer = csv.writer(lines)
        for step, batch in enumerate(loader):
            module.resize(module.sampler.draw(step))
            optimizer.zero_grad()
            logits = module.student(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            loss = nn.functional.cross_entropy(logits, batch["labels"])
            torch.autograd.backward(loss)
            if (step + 1) % LOG_EVERY == 0:
                norm = torch.nn.utils.get_total_norm(
                    p.grad for p in parameters if p.grad is not None
                )
                rate = scheduler.get_last_lr()[0]
                writer.writerow([step, loss.item(), norm.item(), module.size, rate])
                lines.flush()
            optimizer.step()
            scheduler.step()
            yield


class Bare(L.LightningModule):
    """The same training in as few lines as Lightning allows."""

    def __init__(self, method: DyLoRA, max_steps: int) -> None:
        super().__init__()
        self.method, self.max_steps = method, max_steps

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.method.resize(self.method.sampler.draw(self.trainer.global_step))
        logits = self.method.student(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
        return nn.functional.cross_entropy(logits, batch["labels"])

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.method.make_optimizer()
        schedule = lr_scheduler(optimizer, "linear", 0.06, self.max_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Turns(L.Callback):
    """Before every ``segment``-th step of the trainer, runs a segment by hand; times both."""

    def __init__(self, hand: Iterator[None], given: argparse.Namespace) -> None:
        self.hand, self.segment = hand, given.segment
        self.clock = process_time if given.clock == "cpu" else perf_counter
        self.trainer_seconds: list[float] = []
        self.hand_seconds: list[float] = []
        self._began: float | None = None

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self.segment:
            return
        now = self.clock()
        if self._began is not None:
            self.trainer_seconds.append((now - self._began) / self.segment)
        now = self.clock()
        for _ in range(self.segment):
            next(self.hand)
        self._began = self.clock()
        self.hand_seconds.append((self._began - now) / self.segment)


def bare_trainer(steps: int, turns: Turns) -> L.Trainer:
    """Without loggers, bar and checkpoints."""
    nothing: Any = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        limit_val_batches=0,
        callbacks=[turns],
        **nothing,
    )


def make_trainer(folder: Path, steps: int, turns: Turns, *, terminal: bool) -> L.Trainer:
    """As `lightning_kd.cli.RecipeCLI` makes it."""
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - closed with the process
    console = {"file": nowhere, "force_terminal": terminal}
    checkpoints = [
        ModelCheckpoint(folder, filename="best", monitor="val/mean/accuracy", mode="max"),
        ModelCheckpoint(folder, filename="last", every_n_train_steps=100 * steps),
        ModelCheckpoint(folder, filename="last"),
    ]
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        limit_val_batches=0,
        log_every_n_steps=LOG_EVERY,
        enable_model_summary=False,
        default_root_dir=folder,
        logger=[MetricsFile(folder), Events(folder)],
        callbacks=[turns, RichProgressBar(refresh_rate=2, console_kwargs=console), *checkpoints],
        plugins=[AtomicCheckpointIO()],
    )


def main() -> None:
    """Measure and report."""
    given = options()
    start(given)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    steps = given.segment * (given.rounds + given.warmup) + 1
    batches = token_batches(8, given.batch_size, given.length, 30522, given.seed) * steps
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loaders = [DataLoader(batches, batch_size=None) for _ in range(2)]
        # One segment more: the first of the trainer's turns is the hand's too.
        hand = by_hand(dylora(given), loaders[0], steps + given.segment, folder / "hand.csv")
        turns = Turns(hand, given)
        module: L.LightningModule = dylora(given)
        if given.bare:
            trainer, module = bare_trainer(steps, turns), Bare(dylora(given), steps)
        else:
            trainer = make_trainer(folder, steps, turns, terminal=given.terminal)
        trainer.fit(module, train_dataloaders=loaders[1])
    ours = turns.trainer_seconds[given.warmup :]
    theirs = turns.hand_seconds[given.warmup : given.warmup + len(ours)]
    print(f"{len(ours)} segments of {given.segment} steps | milliseconds per step")
    print(f"Trainer | {Spread.of(ours).scaled(1e3)}")
    print(f"by hand | {Spread.of(theirs).scaled(1e3)}")
    tax = Spread.of([a - b for a, b in zip(ours, theirs, strict=True)]).scaled(1e3)
    print(f"    tax | {tax}")
    if Spread.of(theirs).median < SHORTEST_STEP:
        print(f"steps are below {SHORTEST_STEP * 1e3:g} ms: raise --batch_size or --length")
    check = Check("step of the Trainer / by hand", ratio(ours, theirs), 1.03)
    report(
        "framework_tax",
        check,
        step_ms=round(Spread.of(theirs).median * 1e3, 3),
        tax_ms=round(tax.median, 3),
        terminal=given.terminal,
        bare=given.bare,
        threads=given.threads,
    )


if __name__ == "__main__":
    main()
