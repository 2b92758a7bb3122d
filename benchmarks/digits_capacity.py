"""The capacity gap on digits: does a larger, over-confident teacher hurt a small student?

Handwritten digits, split 60/20/20, a fifth of the training labels wrong; validation and test stay
clean. Teachers of several sizes learn the wrong labels by heart; a small student then learns from
the labels alone (CE), by vanilla KD, by plain regression of the logits (MSE), by Annealing-KD and
by Continuation-KD, for equally many epochs. Two families: ResNets, and the control with hidden
units in place of filters. Run i of every arm has the same split, noise and initial student. Every
finished run is a line of a file, so a killed experiment goes on where it was.

    lightning-kd assets digits
    python benchmarks/digits_capacity.py --family resnet --seeds 3
    python benchmarks/digits_capacity.py --family mlp --seeds 5
    python benchmarks/digits_capacity_report.py docs/evidence/digits.md runs/digits_capacity/*.jsonl
"""

import argparse
import copy
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import datasets
import lightning as L
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_kd.data import CIFAR, FlipLabels
from lightning_kd.methods import AnnealingKD, ContinuationKD, FineTuning, TaskModule, VanillaKD
from lightning_kd.nn import CifarResNet
from lightning_kd.paper_schedules import LinearPsi
from lightning_kd.phases import Phase, fit_phases
from lightning_kd.run_checkpoints import run_checkpoints

METHODS = ("CE", "KD", "MSE", "Annealing-KD", "Continuation-KD")
Record = dict[str, Any]


def perceptron(*widths: int) -> nn.Module:
    """Of 64 pixels, with hidden layers of these widths (tanh: of six ReLU units, some die)."""
    sizes = (64, *widths)
    layers: list[nn.Module] = [nn.Flatten()]
    for ins, outs in pairwise(sizes):
        layers += [nn.Linear(ins, outs), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


def resnet(depth: int, width: int) -> nn.Module:
    """Of so many layers, with so many filters in the first stage."""
    return CifarResNet(depth, 10, num_channels=1, width=width)


STUDENTS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet": lambda: resnet(8, 2),
    "mlp": lambda: perceptron(6),
}
TEACHERS: Mapping[str, Mapping[str, Callable[[], nn.Module]]] = {
    "resnet": {
        "ResNet-8, 4 filters": lambda: resnet(8, 4),
        "ResNet-8, 16 filters": lambda: resnet(8, 16),
        "ResNet-20, 16 filters": lambda: resnet(20, 16),
    },
    "mlp": {f"2 x {width} units": lambda width=width: perceptron(width, width)  # type: ignore[misc]
            for width in (16, 64, 512)},
}  # fmt: skip


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=tuple(STUDENTS), default="resnet")
    parser.add_argument("--data_dir", default="assets/digits")
    parser.add_argument("--epochs", type=int, default=60, help="of every student, an even number")
    parser.add_argument("--teacher_epochs", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=1e-2, help="of Adam, at its peak")
    parser.add_argument("--teacher_learning_rate", type=float, default=3e-3)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--noise", type=float, default=0.2, help="share of wrong training labels")
    parser.add_argument("--max_temperature", type=int, default=10, help="of the two annealed ones")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help="a .jsonl file")
    return parser.parse_args(args)


class Keep(L.Callback):
    """The student's best weights by validation, in memory, over all fits that it is given to."""

    def __init__(self) -> None:
        self.best, self.weights = -1.0, dict[str, Tensor]()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare; the first of equals stays."""
        value = float(trainer.callback_metrics["val/accuracy"])
        if value > self.best and isinstance(pl_module, TaskModule):
            self.best, self.weights = value, copy.deepcopy(pl_module.student.state_dict())


class Experiment:
    """One family: runs what is not in the file yet."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.output = options.output or Path(f"runs/digits_capacity/{options.family}.jsonl")
        self.output.parent.mkdir(parents=True, exist_ok=True)
        left_out = ("seeds", "output", "data_dir")  # what may differ between runs of one file
        self.settings = {k: v for k, v in vars(options).items() if k not in left_out}
        lines = self.output.read_text().splitlines() if self.output.exists() else []
        self.records: list[Record] = [json.loads(line) for line in lines]
        for record in self.records:
            if record["settings"] != self.settings:
                raise SystemExit(
                    f"{self.output} has runs with {record['settings']}, these are {self.settings}; "
                    "give another --output"
                )

    def run(self) -> None:
        """Seed by seed, so that a stopped experiment has whole seeds."""
        for seed in range(self.options.seeds):
            self.student(seed, "CE", "-")
            for teacher in TEACHERS[self.options.family]:
                self.teacher(seed, teacher)
                for method in METHODS[1:]:
                    self.student(seed, method, teacher)

    def data(self, seed: int) -> CIFAR:
        """Split, noise and order of this seed."""
        data = CIFAR(
            "digits",
            self.options.data_dir,
            batch_size=self.options.batch_size,
            eval_batch_size=512,
            holdout_fraction=0.25,
            train_transforms=[FlipLabels(self.options.noise, seed=seed)],
            seed=seed,
        )
        data.setup()
        return data

    def student(self, seed: int, method: str, teacher: str) -> None:
        """One run, unless it is in the file."""
        key = {"seed": seed, "method": method, "teacher": teacher}
        if any(key.items() <= record.items() for record in self.records):
            return
        L.seed_everything(seed, verbose=False)
        data, start = self.data(seed), perf_counter()
        network = STUDENTS[self.options.family]()
        module = self.module(method, network, data, seed, teacher)
        with TemporaryDirectory() as folder:
            keep = self.fit(module, data, self.options.epochs, Path(folder))
        last = accuracy(network, data.test_dataloader()[0])
        network.load_state_dict(keep.weights)
        best = accuracy(network, data.test_dataloader()[0])
        size = sum(p.numel() for p in network.parameters())
        scores = {"validation": keep.best, "test": best, "last": last}
        self.add({**key, **scores, "weights": size, "seconds": perf_counter() - start})

    def module(
        self, method: str, network: nn.Module, data: CIFAR, seed: int, teacher: str
    ) -> TaskModule:
        """The method on a student."""
        epochs, top = self.options.epochs, self.options.max_temperature
        common: dict[str, Any] = {
            "learning_rate": self.options.learning_rate,
            "weight_decay": 0.0,
            "warmup_fraction": 0.0,
        }
        if method == "CE":
            return FineTuning(network, data.spec, **common)
        common["teacher"] = self.teacher(seed, teacher)
        common["teacher_cache"] = str(self.place(seed, teacher).with_suffix(""))
        if method == "KD":
            return VanillaKD(network, data.spec, temperature=4.0, alpha=0.5, **common)
        if method == "MSE":
            return VanillaKD(network, data.spec, loss="mse", alpha=1.0, **common)
        if method == "Annealing-KD":
            halves = {"teacher_epochs": epochs // 2, "label_epochs": epochs // 2}
            return AnnealingKD(network, data.spec, max_temperature=top, **halves, **common)
        # psi of 30 epochs of GLUE (Eq. 8), whatever the length: one half after two thirds, then 1
        psi = LinearPsi(round(epochs * 4 / 3), until=round(epochs * 2 / 3))
        return ContinuationKD(network, data.spec, max_temperature=top, psi=psi, **common)

    def fit(self, module: TaskModule, data: CIFAR, epochs: int, folder: Path) -> Keep:
        """Train, in one fit or in phases."""
        keep = Keep()

        def trainer(epochs: int, *callbacks: L.Callback) -> L.Trainer:
            quiet: Any = dict.fromkeys(
                ("logger", "enable_progress_bar", "enable_model_summary"), False
            )
            return L.Trainer(
                accelerator="cpu", devices=1, max_epochs=epochs, num_sanity_val_steps=0,
                callbacks=[keep, *callbacks], default_root_dir=str(folder),
                enable_checkpointing=bool(callbacks), **quiet,
            )  # fmt: skip

        def of_phase(phase: Phase, checkpoints: Path) -> L.Trainer:
            saving = run_checkpoints(checkpoints, module.monitor, every_n_steps=10**6)
            return trainer(phase.max_epochs, *saving)

        if module.phases:
            fit_phases(module, data, folder, of_phase)
        else:
            trainer(epochs).fit(module, datamodule=data)
        return keep

    def place(self, seed: int, name: str) -> Path:
        """Where a teacher is kept."""
        stem = name.replace(", ", "_").replace(" ", "-")
        return self.output.with_suffix("") / f"{stem}_{seed}.safetensors"

    def teacher(self, seed: int, name: str) -> nn.Module:
        """A network that knows the wrong labels by heart: its last weights."""
        path = self.place(seed, name)
        L.seed_everything(1000 + seed, verbose=False)
        network = TEACHERS[self.options.family][name]()
        if path.exists():
            network.load_state_dict(load_file(path))
            return network
        data, start = self.data(seed), perf_counter()
        rate = self.options.teacher_learning_rate
        module = FineTuning(network, data.spec, learning_rate=rate, weight_decay=0.0)
        with TemporaryDirectory() as folder:
            keep = self.fit(module, data, self.options.teacher_epochs, Path(folder))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), path)
        scores = {
            "validation": keep.best,
            "last": accuracy(network, data.test_dataloader()[0]),
            "memorized": accuracy(network, data.train_dataloader()),
        }
        size = sum(p.numel() for p in network.parameters())
        seconds = perf_counter() - start
        self.add({"seed": seed, "method": "teacher", "teacher": name, **scores, "weights": size,
                  "seconds": seconds})  # fmt: skip
        return network

    def add(self, record: Record) -> None:
        """Append to the file."""
        record["settings"] = self.settings
        with self.output.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)
        print({k: v for k, v in record.items() if k != "settings"}, flush=True)


@torch.no_grad()
def accuracy(network: nn.Module, loader: DataLoader[Any]) -> float:
    """Share of right answers."""
    network.eval()
    right = [network(batch["pixel_values"]).argmax(1) == batch["labels"] for batch in loader]
    return float(torch.cat(right).double().mean())


if __name__ == "__main__":
    given = parse()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        Experiment(given).run()
