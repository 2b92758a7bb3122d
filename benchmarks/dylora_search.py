"""What does it cost to know the accuracy of every rank from 1 to 8?

Either one DyLoRA run and an evaluation of its 8 ranks, or eight PEFT LoRA runs (r=1..8) of the same
steps, each with its own evaluation. Real reviews on the MiniLM encoder, the batches of the recipe
(32 sentences of similar length), identical for all nine runs. The runs advance in turns, a few
steps each, so that all of them share whatever the machine does; then all of them are evaluated, in
turns too. Loading is left out: eight runs would pay it eight times.

Evaluation is the part that DyLoRA cannot save. On SST-2 an epoch trains on 67k sentences for each
evaluation of 872, so 77 : 1; here ``--train_per_evaluated`` is 25 : 1, to our disadvantage.

    python benchmarks/dylora_search.py
    python benchmarks/dylora_search.py --rounds 4     # 16 steps of every run instead of 80
"""

import argparse
from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from benchmarks.common import Check, Spread, interleaved, parser, report, start
from benchmarks.dylora_step import MAX_RANK, RANKS, Batch, Trained
from lightning_kd.data import GLUE
from lightning_kd.methods import DyLoRA, LoRA


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, rounds=20)
    made.add_argument("--data_dir", default="assets/reviews")
    made.add_argument("--batch_size", type=int, default=32)
    made.add_argument("--steps", type=int, default=4, help="of every run in every round")
    made.add_argument("--train_per_evaluated", type=float, default=25)
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
    """Training batches, and the share of the dev set that goes with them."""
    settings = {"tokenizer": given.student, "data_dir": given.data_dir, "seed": given.seed}
    steps = given.steps * given.rounds
    evaluated = round(steps * given.batch_size / given.train_per_evaluated)
    train = GLUE("sst2", batch_size=given.batch_size, group_by_length=True, **settings)
    # Another module: its limit would hold for the training set, too.
    dev = GLUE("sst2", eval_batch_size=64, limit_examples=max(1, evaluated), **settings)
    wanted = steps + given.steps * given.warmup
    return list(islice(train.train_dataloader(), wanted)), list(dev.val_dataloader()[0])


def main() -> None:
    """Measure and report."""
    given = options()
    start(given)
    train, dev = load(given)
    evaluated = sum(batch["labels"].shape[0] for batch in dev)
    steps = given.steps * given.rounds
    runs = {"DyLoRA": Run(None, train, given)}
    runs |= {f"LoRA r={rank}": Run(rank, train, given) for rank in RANKS}
    training = interleaved(runs, given)
    evaluations: dict[str, Callable[[], object]] = {
        name: lambda run=run: run.evaluate(dev)  # type: ignore[misc]
        for name, run in runs.items()
    }
    evaluating = interleaved(evaluations, given, given.evaluations)
    print(
        f"{steps} steps of {given.batch_size} sentences in each of {len(runs)} runs, "
        f"{evaluated} sentences evaluated ({steps * given.batch_size / evaluated:.0f} : 1)"
    )
    print(f"{'run':>10} | {'training, s':>11} | {'evaluation, s':>13}")
    once = {name: Spread.of(values).median for name, values in evaluating.items()}
    for name in runs:
        print(f"{name:>10} | {sum(training[name]):>11.2f} | {once[name]:>13.2f}")
    peers = [name for name in runs if name != "DyLoRA"]

    def whole(names: list[str], index: int) -> float:
        return sum(training[name][index] + once[name] / given.rounds for name in names)

    ours = [whole(["DyLoRA"], index) for index in range(given.rounds)]
    theirs = [whole(peers, index) for index in range(given.rounds)]
    by_round = Spread.of([b / a for a, b in zip(ours, theirs, strict=True)])
    # The sums are what a user waits for; the rounds only say how sure it is.
    speedup = Spread(sum(theirs) / sum(ours), by_round.low, by_round.high)
    step_ratio = sum(sum(training[n]) for n in peers) / len(peers) / sum(training["DyLoRA"])
    share = once["DyLoRA"] / sum(ours)
    print(f"runs saved: {len(peers)} instead of 1 | LoRA step / DyLoRA step: {step_ratio:.3f}")
    print(f"evaluation of all ranks: {share:.1%} of the DyLoRA total")
    report(
        "dylora_search",
        Check("8 LoRA runs / 1 DyLoRA run, evaluations included", speedup, 7.0, at_most=False),
        runs_saved=len(peers),
        step_ratio=round(step_ratio, 4),
        evaluation_share=round(share, 4),
        steps=steps,
        evaluated=evaluated,
        threads=given.threads,
    )


if __name__ == "__main__":
    main()
