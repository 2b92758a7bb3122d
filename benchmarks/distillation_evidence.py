"""Do the distillation methods help a small student? Every arm, several seeds, equal epochs.

A seed decides the training sentences, the wrong labels among them, the teacher (the pre-trained
model, fine-tuned on the same sentences) and the student; all arms of a seed share these. The best
epoch is chosen on held-out training sentences and scored on the published dev set, in all arms
alike. The learning rate, one for all, is chosen before, by three simple arms and another seed.
Every finished trial, also one that failed, is a line of a file: a killed study goes on where it
was, and several that are started at once share the work.

    python benchmarks/distillation_evidence.py
    python benchmarks/distillation_evidence.py --task mrpc --data_dir DIR --tuned_on FILE.jsonl
    python benchmarks/distillation_report.py docs/evidence/distillation.md reviews=FILE.jsonl
"""

import argparse
import fcntl
import json
import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from time import perf_counter, process_time
from typing import Any

import lightning as L

from benchmarks.distillation_arms import ARMS, BOTH, RIVALS, Sample, Trial, grid, pretrained
from benchmarks.distillation_training import fit, load, versions
from benchmarks.label_regularization_study import evaluated
from lightning_kd.callbacks import TrajectoryRecorder
from lightning_kd.data import GLUE, FlipLabels
from lightning_kd.methods import FineTuning, TaskModule

TUNING_SEED = 1000
"""Of the students that choose a learning rate; their sentences are those of seed 0."""

CUTS: dict[int, tuple[int, ...]] = {2: (0, 3), 3: (0, 2, 4)}
"""Layers of six that a student of so many has."""

Record = dict[str, Any]

RUN_OPTIONS = (
    "task", "model", "examples", "epochs", "teacher_epochs", "teacher_rate", "holdout_fraction",
    "batch_size", "max_length", "precision",
)  # fmt: skip
"""What all runs of one file must have in common."""


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data_dir", default="assets/reviews", help="GLUE's published files")
    parser.add_argument("--model", default="assets/minilm", help="of teacher and student")
    parser.add_argument("--cuts", nargs="*", type=int, default=[2], help="layers of the student")
    parser.add_argument("--examples", type=int, default=640, help="to train on, at most")
    parser.add_argument("--holdout_fraction", type=float, default=0.03, help="to choose on")
    parser.add_argument("--epochs", type=int, default=5, help="of every student")
    parser.add_argument("--teacher_epochs", type=int, default=4)
    parser.add_argument("--teacher_rate", type=float, default=1e-4)
    parser.add_argument("--rates", nargs="*", type=float, default=[1e-4, 2e-4, 4e-4])
    parser.add_argument("--tuned_on", type=Path, help="take the rate best there, over all depths")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--precision", default="32-true", help="of training: see Lightning's")
    parser.add_argument("--noise", nargs="*", type=float, default=[0.0, 0.4, 0.2])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--output", type=Path, help="a .jsonl file")
    return parser.parse_args(args)


class Study:
    """One task, one budget: runs what is not in the file yet."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.output = options.output or Path("runs/distillation") / f"{options.task}.jsonl"
        self.models = self.output.with_suffix("")  # teachers, their answers, locks
        self.models.mkdir(parents=True, exist_ok=True)
        self.common = {name: getattr(options, name) for name in RUN_OPTIONS}
        self._data: dict[tuple[int, float], GLUE] = {}
        for record in self.records():
            if record["options"] != self.common:
                raise SystemExit(
                    f"{self.output} has runs with {record['options']}, these are {self.common}; "
                    "give another --output"
                )

    def records(self, path: Path | None = None) -> list[Record]:
        """What is done, also by others."""
        path = path or self.output
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self) -> None:
        """All trials that are asked for; those that another process is at come last."""
        for wait in (False, True):
            for cut in self.options.cuts:
                rate = self.chosen(cut)
                for noise in self.options.noise:
                    for seed in self.options.seeds:
                        for name in grid(self.options.arms, noise):
                            self.trial("report", name, cut, noise, seed, rate, wait=wait)

    @cache  # noqa: B019 - one study for a process
    def chosen(self, cut: int) -> float:
        """The best learning rate on held-out sentences without noise, in the mean of the rivals.

        One for all arms: a choice for each would be the luck of a small validation set.
        """
        rates, tried = self.options.rates, []
        if self.options.tuned_on is not None:
            found = self.records(self.options.tuned_on)
            tried = [record for record in found if record["stage"] == "tune"]
        elif len(rates) > 1:
            for wait in (False, True):
                tried = [
                    self.trial("tune", name, cut, 0.0, TUNING_SEED, rate, wait=wait)
                    for name in RIVALS
                    for rate in rates
                ]
        else:
            return float(rates[0])
        scores: dict[float, list[float]] = {}
        for record in tried:
            score = record["scores"].get("validation", -math.inf)  # it diverged
            scores.setdefault(record["rate"], []).append(score)
        return max(scores, key=lambda rate: fmean(scores[rate]))

    def trial(
        self, stage: str, arm: str, cut: int, noise: float, seed: int, rate: float,
        *, wait: bool = True,
    ) -> Record:  # fmt: skip
        """The record of a run, which is made if it is not there; empty if another makes it."""
        key = {"stage": stage, "arm": arm, "cut": cut, "noise": noise, "seed": seed, "rate": rate}
        with self.claimed("-".join(map(str, key.values())), wait=wait) as mine:
            for record in self.records():
                if all(record[name] == value for name, value in key.items()):
                    return record
            return self.made(key) if mine else {}

    def made(self, key: Record) -> Record:
        """Run a trial and write it down; a training that diverged is a result, too."""
        cut, noise, seed, rate = (key[name] for name in ("cut", "noise", "seed", "rate"))
        arm, drawn = ARMS[key["arm"]], 0 if key["stage"] == "tune" else seed
        seen = {who: noise if who in arm.noisy else 0.0 for who in BOTH}
        data = self.data(drawn, seen["student"])
        trial = Trial(
            self.options.model, data.spec, CUTS[cut], rate, self.options.epochs, noise, seed,
            teacher=lambda: self.teacher(drawn, seen["teacher"]),
            copy=lambda: self.copy(cut, seed),
            folds=self.models / "folds",
        )  # fmt: skip
        keep = None
        if (key["stage"], key["arm"], noise) == ("report", "fine_tuning", 0):
            keep = self.models / f"copy-{cut}-{seed}"
        make = partial(arm.make, trial)
        return self.scored(key, make, data, trial.epochs, arm.callbacks(), keep)

    def scored(
        self, key: Record, make: Callable[[], TaskModule], data: GLUE, epochs: int,
        callbacks: Sequence[L.Callback] = (), keep: Path | None = None,
    ) -> Record:  # fmt: skip
        """Train, take the best epoch, evaluate it in fp32, write the line."""
        failed, seconds = None, {}
        scores: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(dir=self.models) as folder:
            try:
                module = make()  # a teacher that is missing is trained here, on its own account
                start, cpu = perf_counter(), process_time()
                precision = self.options.precision
                done = fit(module, data, epochs, Path(folder), precision, callbacks)
                seconds = {"wall": perf_counter() - start, "cpu": process_time() - cpu}
                scores = {"validation": done.validation}
                if key["stage"] != "tune":
                    scores |= evaluated(module, data.test_dataloader()[0])
                if keep is not None:
                    module.export(keep)
                for name in () if key["stage"] == "tune" else done.states:
                    load(module, done.last, raw=name == "raw")
                    scores[name] = evaluated(module, data.test_dataloader()[0])
            except FloatingPointError as error:
                failed = str(error)
        about = {"data_sha256": data.data_sha256, **data.notes, **versions()}
        made = {"scores": scores, "failed": failed, "seconds": seconds, "about": about}
        record = {**key, **made, "options": self.common}
        with self.output.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(*key.values(), failed or scores, seconds, flush=True)
        return record

    def data(self, seed: int, noise: float) -> GLUE:
        """The sentences of a seed, with this share of wrong labels to train on."""
        if (seed, noise) not in self._data:
            wrong = [FlipLabels(noise, seed)] if noise else []
            names = ("task", "data_dir", "holdout_fraction", "batch_size", "max_length")
            self._data[seed, noise] = GLUE(
                tokenizer=self.options.model,
                eval_batch_size=64,
                group_by_length=True,
                train_transforms=[Sample(self.options.examples, seed), *wrong],
                seed=seed,
                **{name: getattr(self.options, name) for name in names},
            )
            self._data[seed, noise].setup()
        return self._data[seed, noise]

    def teacher(self, seed: int, noise: float) -> Path:
        """The model, fine-tuned on what the students see."""
        folder, rate = self.models / f"teacher-{seed}-{noise:g}", self.options.teacher_rate
        key = {"stage": "teacher", "arm": "teacher", "cut": 0, "noise": noise, "seed": seed}
        with self.claimed(folder.name):
            if not folder.is_dir():
                data = self.data(seed, noise)

                def make() -> TaskModule:
                    L.seed_everything(seed, verbose=False)
                    return FineTuning(
                        **pretrained(self.options.model, data.spec), learning_rate=rate
                    )

                path = folder.with_name(f"{folder.name}-path")
                shutil.rmtree(path, ignore_errors=True)  # of a training that was killed
                way, epochs = [TrajectoryRecorder(path)], self.options.teacher_epochs
                self.scored({**key, "rate": rate}, make, data, epochs, way, folder)
        return folder

    def copy(self, cut: int, seed: int) -> Path:
        """The fine-tuned student of this seed: the run of fine_tuning."""
        record = self.trial("report", "fine_tuning", cut, 0.0, seed, self.chosen(cut))
        if failed := record["failed"]:
            raise FloatingPointError(f"no copy to learn from: {failed}")
        return self.models / f"copy-{cut}-{seed}"

    @contextmanager
    def claimed(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock among processes, which ends with the one that has it; False: another does."""
        mine = True
        with (self.models / f"{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                mine = False
            yield mine


def main(args: list[str] | None = None) -> None:
    """Run what is not done yet."""
    options = parse(args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        Study(options).run()


if __name__ == "__main__":
    main()
