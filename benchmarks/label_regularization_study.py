"""Does a regularized label help, with a pre-trained student and with one from scratch?

Five arms (none, label_smoothing, tf_reg, self_kd, kd) x two initial states x seeds, every run of
equal length. Each arm is tuned with the same number of trials on a held-out part of the training
set; the chosen setting then runs with fresh seeds and is scored on the published dev set. Run i of
every arm shares its head, its order of examples and its dropout; the copy that teaches self_kd is
the run of ``none`` with that seed. Every finished run, also one that failed, is a line of a file,
so a killed study goes on where it was.

    python benchmarks/label_regularization_study.py
    python benchmarks/label_regularization_study.py --task mrpc --data_dir DIR --student NAME
    python benchmarks/label_regularization_report.py runs/label_regularization/*.jsonl

All grids are ours, for a small student and short runs: the paper's could not be confirmed.
"""

import argparse
import gc
import json
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from benchmarks.label_regularization_report import Record, print_report
from lightning_kd.data import GLUE
from lightning_kd.functional import confidence
from lightning_kd.methods import FineTuning, LabelRegularization, TaskModule
from lightning_kd.tasks import Regression

ARMS = ("none", "label_smoothing", "tf_reg", "self_kd", "kd")
INITS = ("pretrained", "random")
TUNING_SEED = 1000
"""Of all trials that choose a setting; no reported run has it."""

TAUGHT = ({"alpha": 0.5, "temperature": 1.0}, {"alpha": 0.9, "temperature": 2.0})
SETTINGS: dict[str, tuple[dict[str, float], ...]] = {
    "label_smoothing": ({"alpha": 0.1}, {"alpha": 0.2}),
    "tf_reg": ({"alpha": 0.5, "gold": 0.9}, {"alpha": 0.5, "gold": 0.99}),
    "self_kd": TAUGHT,
    "kd": TAUGHT,
}

RUN_OPTIONS = (
    "task", "student", "layers", "teacher", "teacher_steps", "teacher_learning_rate",
    "examples", "holdout_fraction", "steps", "batch_size", "max_length",
)  # fmt: skip
"""What all runs of one file must have in common."""


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data_dir", default="assets/reviews", help="GLUE's published files")
    parser.add_argument("--student", default="assets/minilm")
    parser.add_argument("--layers", type=int, default=3, help="of the student, its first ones")
    parser.add_argument("--teacher", default="assets/minilm", help="fine-tuned here, of kd")
    parser.add_argument("--teacher_steps", type=int, default=300, help="0 takes it as it is")
    parser.add_argument("--teacher_learning_rate", type=float, default=5e-5)
    parser.add_argument("--examples", type=int, default=1000, help="of each split, at most")
    parser.add_argument("--holdout_fraction", type=float, default=0.1, help="to choose on")
    parser.add_argument("--steps", type=int, default=200, help="of every run")
    parser.add_argument("--batch_size", type=int, default=16)
    rates: dict[str, Any] = {"nargs": 4, "type": float, "help": "grid; the middle two for all arms"}
    parser.add_argument("--pretrained_rates", default=[5e-5, 1e-4, 2e-4, 5e-4], **rates)
    parser.add_argument("--random_rates", default=[1e-4, 3e-4, 1e-3, 3e-3], **rates)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=ARMS)
    parser.add_argument("--inits", nargs="*", choices=INITS, default=INITS)
    parser.add_argument("--no_tuning", action="store_true", help="take the grid's first setting")
    parser.add_argument("--margin", type=float, default=1.0, help="points that would matter")
    parser.add_argument("--output", type=Path, default=None, help="a .jsonl file")
    return parser.parse_args(args)


def grid(arm: str, rates: Sequence[float]) -> list[dict[str, float]]:
    """Four trials for every arm, so that none wins by being searched more."""
    if arm == "none":
        return [{"learning_rate": rate} for rate in (rates[1], rates[0], *rates[2:])]
    return [{"learning_rate": rate, **more} for rate in rates[1:3] for more in SETTINGS[arm]]


@torch.no_grad()
def evaluated(module: TaskModule, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Official metrics, and for classes calibration, confidence and how many are ever answered."""
    module.eval()
    metrics, logits, labels = module.task.metrics(), [], []
    for batch in batches:
        prediction = module.predict(batch)
        metrics.update(module.task.decode(prediction), batch["labels"])
        logits.append(prediction.logits.float())
        labels.append(batch["labels"])
    found = {name: float(value) for name, value in metrics.compute().items()}
    if isinstance(module.task, Regression):
        return found
    every, gold = torch.cat(logits), torch.cat(labels)
    largest, entropy = confidence(every)
    calibration = multiclass_calibration_error(every.softmax(-1), gold, module.task.num_labels)
    return {
        **found,
        "ece": float(calibration),
        "max_probability": float(largest.mean()),
        "entropy": float(entropy.mean()),
        "answered_classes": len(set(every.argmax(-1).tolist())),
    }


class Study:
    """One task, one budget: runs what is not in the file yet."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.output = options.output or Path("runs/label_regularization") / f"{options.task}.jsonl"
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.models = self.output.with_suffix("")  # fine-tuned copies, the teacher, its answers
        self.common = {name: getattr(options, name) for name in RUN_OPTIONS}
        self.records = self._read()
        self.data = GLUE(
            options.task,
            tokenizer=options.student,
            data_dir=options.data_dir,
            batch_size=options.batch_size,
            eval_batch_size=64,
            max_length=options.max_length,
            limit_examples=options.examples,
            holdout_fraction=options.holdout_fraction,
        )
        self.data.setup()

    def _read(self) -> list[Record]:
        lines = self.output.read_text().splitlines() if self.output.exists() else []
        records: list[Record] = [json.loads(line) for line in lines]
        for record in records:
            if record["options"] != self.common:
                raise SystemExit(
                    f"{self.output} has runs with {record['options']}, these are {self.common}; "
                    "give another --output"
                )
        return records

    def run(self) -> None:
        """All arms asked for, initial state by initial state."""
        for init in self.options.inits:
            for arm in self.options.arms:
                if arm in ("label_smoothing", "tf_reg") and self.regression:
                    print(f"{init} {arm}: n/a, not defined for regression", flush=True)
                    continue
                setting = self.chosen(arm, init)
                for seed in range(self.options.seeds):
                    self.trial("report", arm, init, seed, setting)

    @property
    def regression(self) -> bool:
        """Whether hand-made targets have no meaning."""
        return isinstance(self.data.spec, Regression)

    def chosen(self, arm: str, init: str) -> dict[str, float]:
        """The best setting on the held-out examples; a failed trial is never chosen."""
        settings = grid(arm, getattr(self.options, f"{init}_rates"))
        if self.options.no_tuning:
            return settings[0]
        tried = [self.trial("tune", arm, init, TUNING_SEED, setting) for setting in settings]
        scores = [record["scores"].get(self.data.spec.monitor, float("-inf")) for record in tried]
        return settings[scores.index(max(scores))]

    def trial(
        self, stage: str, arm: str, init: str, seed: int, setting: dict[str, float]
    ) -> Record:
        """The record of a run, which is made if it is not there."""
        key = {"stage": stage, "arm": arm, "init": init, "seed": seed, "setting": setting}
        for record in self.records:
            if all(record[name] == value for name, value in key.items()):
                return record
        start, failed, scores = perf_counter(), None, {}
        try:
            module = self.trained(arm, init, seed, setting)
            if arm == "none" and stage == "report" and "self_kd" in self.options.arms:
                self.keep(module, self.copy_folder(init, seed))
            tuning = stage == "tune"
            loader = (self.data.val_dataloader if tuning else self.data.test_dataloader)()[0]
            scores = evaluated(module, loader)
        except FloatingPointError as error:
            failed = str(error)
        made = {"scores": scores, "failed": failed, "seconds": perf_counter() - start}
        record = {**key, **made, "options": self.common}
        with self.output.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)
        gc.collect()  # a trainer and its module hold each other: their memory adds up over a study
        print(stage, init, arm, seed, setting, failed or scores, flush=True)
        return record

    def trained(self, arm: str, init: str, seed: int, setting: dict[str, float]) -> TaskModule:
        """The last weights of a run: nothing is chosen inside it."""
        teacher: dict[str, Any] = {}  # and how it is asked
        if arm == "kd":
            teacher = {"teacher": str(self.teacher()), "teacher_cache": str(self.models / "cache")}
        elif arm == "self_kd":
            teacher = {"teacher": str(self.copy(init, seed))}
        L.seed_everything(seed, verbose=False)
        module = LabelRegularization(
            self.options.student,
            self.data.spec,
            regularizer=arm,  # type: ignore[arg-type]
            student_layers=self.options.layers,
            student_init=init,
            **{**teacher, **setting},
        )
        return self.fit(module, seed, self.options.steps)

    def fit(self, module: TaskModule, seed: int, steps: int) -> TaskModule:
        """Train for ``steps``; the order of the examples is the seed's."""
        self.data.seed = seed
        quiet: Any = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_steps=steps, limit_val_batches=0, **quiet
        )
        trainer.fit(module, datamodule=self.data)
        return module

    def copy_folder(self, init: str, seed: int) -> Path:
        """Where the fine-tuned student of this seed is kept."""
        return self.models / f"{init}-{seed}"

    def copy(self, init: str, seed: int) -> Path:
        """The fine-tuned student that teaches self_kd: the run of ``none`` with this seed."""
        folder = self.copy_folder(init, seed)
        if not folder.is_dir():
            self.keep(self.trained("none", init, seed, self.chosen("none", init)), folder)
        return folder

    def teacher(self) -> Path:
        """The teacher of kd, the same for all of its runs."""
        folder = self.models / "teacher"
        if self.options.teacher_steps == 0:
            return Path(self.options.teacher)
        if not folder.is_dir():
            L.seed_everything(TUNING_SEED, verbose=False)
            rate = self.options.teacher_learning_rate
            module = FineTuning(self.options.teacher, self.data.spec, learning_rate=rate)
            self.fit(module, TUNING_SEED, self.options.teacher_steps)
            print("teacher", evaluated(module, self.data.test_dataloader()[0]), flush=True)
            self.keep(module, folder)
        return folder

    @staticmethod
    def keep(module: TaskModule, folder: Path) -> None:
        """As a Hugging Face folder, which appears whole."""
        if not folder.is_dir():
            module.export(folder)


def main(args: list[str] | None = None) -> None:
    """Run what is not done yet and print what it says."""
    options = parse(args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loud = logging.getLogger("lightning.pytorch")
        loud.setLevel(logging.ERROR)
        study = Study(options)
        study.run()
    print_report(study.records, options.margin)


if __name__ == "__main__":
    main()
