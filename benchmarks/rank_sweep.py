"""All ranks in one batched pass, or one pass after the other: which evaluates faster?

``DyLoRA(evaluation="sweep")`` tiles a batch over the ranks and gives every example its own;
``"loop"`` switches the rank and runs the batch again. The base weights do the same work in both, so
what a sweep can win is the overhead of small batches, and what it can lose is the cache. Real
reviews sorted by length, as evaluation gives them, on the MiniLM encoder.

    python benchmarks/rank_sweep.py
    python benchmarks/rank_sweep.py --rounds 5 --batch_sizes 4 16
"""

import argparse
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Check, Spread, interleaved, parser, ratio, report, start
from lightning_kd.data import GLUE
from lightning_kd.methods import DyLoRA

MODES = ("sweep", "loop")
RANKS = range(1, 9)
Batch = dict[str, Tensor]


def batches(given: argparse.Namespace, size: int) -> list[Batch]:
    """Some batches of the dev set, from the short to the long ones."""
    data = GLUE("sst2", tokenizer=given.student, data_dir=given.data_dir, eval_batch_size=size)
    loaded = list(data.val_dataloader()[0])
    places = torch.linspace(0, len(loaded) - 1, min(given.batches, len(loaded))).long()
    return [loaded[int(place)] for place in places]


def show(seconds: dict[str, list[float]], inputs: dict[int, list[Batch]]) -> None:
    """Milliseconds per example and rank."""
    for size, some in inputs.items():
        count = sum(batch["labels"].shape[0] for batch in some) * len(RANKS)
        for mode in MODES:
            spread = Spread.of(seconds[f"{mode} {size}"]).scaled(1e3 / count)
            print(f"{mode:>6}, batches of {size:>3} | {spread}")


def conclude(seconds: dict[str, list[float]], given: argparse.Namespace) -> None:
    """Is the default the faster one?"""
    default = inspect.signature(DyLoRA).parameters["evaluation"].default
    other = MODES[default == MODES[0]]
    ratios = {
        size: ratio(seconds[f"{default} {size}"], seconds[f"{other} {size}"])
        for size in given.batch_sizes
    }
    for size, against in ratios.items():
        winner = default if against.median < 1 else other
        print(f"batches of {size:>3}: {default} / {other} {against}, {winner} is faster")
    usual = max(ratios)
    report(
        "rank_sweep",
        Check(f"{default} (the default) / {other}, batches of {usual}", ratios[usual], 1.0),
        default=default,
        by_batch_size={size: round(against.median, 4) for size, against in ratios.items()},
        threads=given.threads,
    )


def main() -> None:
    """Measure and report."""
    made = parser(__doc__, rounds=20)
    made.add_argument("--data_dir", default="assets/reviews")
    made.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 16, 64])
    made.add_argument("--batches", type=int, default=4, help="of every size, short and long ones")
    given = made.parse_args()
    start(given)
    module = DyLoRA(student=given.student, task="sst2", max_rank=RANKS[-1]).eval()
    for layer in module.adapters.values():
        torch.nn.init.normal_(layer.lora_B, std=0.05)  # so that ranks differ
    inputs = {size: batches(given, size) for size in given.batch_sizes}

    def evaluate(mode: Any, size: int) -> list[Tensor]:
        module.evaluation = mode
        with torch.inference_mode():
            return [p.logits for b in inputs[size] for _, p, _ in module.predictions(b)]

    systems: dict[str, Callable[[], object]] = {}
    for size in given.batch_sizes:
        pairs = zip(*(evaluate(mode, size) for mode in MODES), strict=True)
        error = max(float((a - b).abs().max()) for a, b in pairs)
        if error > 1e-3:
            raise RuntimeError(f"sweep and loop differ by {error} at batch size {size}")
        for mode in MODES:
            systems[f"{mode} {size}"] = lambda m=mode, s=size: evaluate(m, s)  # type: ignore[misc]
    seconds = interleaved(systems, given)
    print(f"{len(RANKS)} ranks | milliseconds per example and rank")
    show(seconds, inputs)
    conclude(seconds, given)


if __name__ == "__main__":
    main()
