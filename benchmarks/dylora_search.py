"""What does it cost to know the accuracy of every rank from 1 to 8?

Either one DyLoRA run and an evaluation of its 8 ranks, or eight PEFT LoRA runs (r=1..8) of the same
steps, each with its own evaluation. Real reviews on the MiniLM encoder, the batches of the recipe
(32 sentences of similar length), identical for all nine runs. The runs advance in turns, a few
steps each, so that all of them share whatever the machine does; then all of them are evaluated, in
turns too. Loading is left out: eight runs would pay it eight times.

Evaluation is the part that DyLoRA cannot save, so how much of it there is decides. SST-2 has 67,349
training and 872 dev sentences: with an evaluation after every epoch, 77 : 1. Only a few steps are
measured here, so the seconds of evaluating some batches of the dev set (short to long sentences)
are scaled to that share, ``--train_per_evaluated``; the figure for 25 : 1 is printed beside it.

    python benchmarks/dylora_search.py
    python benchmarks/dylora_search.py --rounds 4     # 16 steps of every run instead of 80
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from benchmarks.common import Check, Spread, interleaved, parser, ratio, report, start
from benchmarks.dylora_step import MAX_RANK, RANKS, Batch, Trained
from lightning_kd.data import GLUE
from lightning_kd.methods import DyLoRA, LoRA

Seconds = dict[str, list[float]]


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, rounds=20)
    made.add_argument("--data_dir", default="assets/reviews")
    made.add_argument("--batch_size", type=int, default=32)
    made.add_argument("--steps", type=int, default=4, help="of every run in every round")
    made.add_argument("--train_per_evaluated", type=float, default=77)
    made.add_argument("--evaluated_batches", type=int, default=4)
    made.add_argument("--evaluations", type=int, default=5, help="repeats; their median counts")
    return made.parse_args()


class Run(Trained):
    """A run that advances some steps when called; `DyLoRA` draws a rank for each."""

    def __init__(self, rank: int | None, batches: list[Batch], given: argparse.Namespace) -> None:
        if rank is None:
            super().__init__(DyLoRA, batches, student=given.student, max_rank=MAX_RANK)
        else:
            super().__init__(LoRA, batches, student=given.student, rank=rank)
        self.steps, self.step = given.steps, 0

    def __call__(self) -> None:
        """Take the steps of one turn."""
        for _ in range(self.steps):
            if isinstance(self.module, DyLoRA):
                self.module.resize(self.module.sampler.draw(self.step))
            super().__call__()
            self.step += 1

    def evaluate(self, batches: list[Batch]) -> list[Tensor]:
        """Answers of all its sizes."""
        self.module.student.eval()
        with torch.inference_mode():
            return [p.logits.argmax(-1) for b in batches for _, p, _ in self.module.predictions(b)]


def load(given: argparse.Namespace) -> tuple[list[Batch], list[Batch]]:
    """Training batches, and some batches of the dev set, from the short to the long ones."""
    data = GLUE(
        "sst2",
        tokenizer=given.student,
        data_dir=given.data_dir,
        batch_size=given.batch_size,
        group_by_length=True,
        seed=given.seed,
    )
    steps = given.steps * (given.rounds + given.warmup)
    dev, count = list(data.val_dataloader()[0]), given.evaluated_batches
    places = [int((index + 0.5) / count * len(dev)) for index in range(count)]
    return list(islice(data.train_dataloader(), steps)), [dev[place] for place in places]


def speedup(training: Seconds, evaluation: Mapping[str, float], rounds: int) -> Spread:
    """Seconds of all LoRA runs over those of DyLoRA's, evaluation included."""
    peers = [name for name in training if name != "DyLoRA"]

    def totals(names: list[str]) -> list[float]:
        share = sum(evaluation[name] for name in names) / rounds
        return [sum(part) + share for part in zip(*(training[n] for n in names), strict=True)]

    ours, theirs = totals(["DyLoRA"]), totals(peers)
    # The sums are what a user waits for; the rounds only say how sure it is.
    return replace(ratio(theirs, ours), median=sum(theirs) / sum(ours))


def show(training: Mapping[str, float], evaluation: Mapping[str, float]) -> None:
    """Milliseconds a sentence."""
    print(
        f"{'run':>10} | {'training':>8} | {'evaluation':>10}    ms a sentence (DyLoRA's: all ranks)"
    )
    for name, seconds in training.items():
        print(f"{name:>10} | {seconds * 1e3:>8.2f} | {evaluation[name] * 1e3:>10.2f}")


def main() -> None:
    """Measure and report."""
    given = options()
    start(given)
    train, dev = load(given)
    runs = {"DyLoRA": Run(None, train, given)}
    runs |= {f"LoRA r={rank}": Run(rank, train, given) for rank in RANKS}
    training = interleaved(runs, given)
    evaluations: dict[str, Callable[[], object]] = {
        name: lambda run=run: run.evaluate(dev)  # type: ignore[misc]
        for name, run in runs.items()
    }
    evaluating = interleaved(evaluations, given, given.evaluations)
    steps = given.steps * given.rounds
    trained = steps * given.batch_size
    evaluated = sum(batch["labels"].shape[0] for batch in dev)
    print(f"{len(runs)} runs of {steps} steps, {trained} sentences; {evaluated} evaluated")
    one_train = {name: sum(values) / trained for name, values in training.items()}
    one_eval = {name: Spread.of(values).median / evaluated for name, values in evaluating.items()}
    show(one_train, one_eval)
    found = {
        share: speedup(
            training, {n: v * trained / share for n, v in one_eval.items()}, given.rounds
        )
        for share in (given.train_per_evaluated, 25.0)
    }
    step_ratio = (sum(one_train.values()) / one_train["DyLoRA"] - 1) / len(RANKS)
    for share, spread in found.items():
        whole = one_train["DyLoRA"] + one_eval["DyLoRA"] / share
        part = one_eval["DyLoRA"] / share / whole
        print(f"at {share:g} : 1 | {spread}, evaluation is {part:.1%} of DyLoRA's time")
    print(f"runs saved: {len(RANKS)} for 1 | LoRA step / DyLoRA step: {step_ratio:.3f}")
    headline = found[given.train_per_evaluated]
    name = f"8 LoRA runs / 1 DyLoRA run, evaluation at {given.train_per_evaluated:g} : 1"
    report(
        "dylora_search",
        Check(name, headline, 7.0, at_most=False),
        runs_saved=len(RANKS),
        step_ratio=round(step_ratio, 4),
        at_25_to_1=round(found[25.0].median, 4),
        steps=steps,
        threads=given.threads,
    )


if __name__ == "__main__":
    main()
