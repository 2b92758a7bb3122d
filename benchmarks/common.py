"""What the benchmarks share: interleaved timing, medians with quartiles, and the last line.

The machine is never quiet and its speed drifts, so a figure of its own means little. Systems take
turns in every round, in an order that changes from round to round, and what is reported is the
median over rounds of their ratio *within* a round.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value.

        >>> Spread.of([4.0, 1.0, 3.0, 2.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0)
        """
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def scaled(self, factor: float) -> "Spread":
        """The same in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def __str__(self) -> str:
        return f"{self.median:8.3f}  (quartiles {self.low:.3f} to {self.high:.3f})"


def round_order(count: int, index: int) -> list[int]:
    """Order of ``count`` systems in round ``index``: rotated, and every other round backwards.

    Every system comes first equally often, and its neighbours come before it as often as after it.

    >>> [round_order(3, index) for index in range(4)]
    [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]]
    """
    order = [(index // 2 + place) % count for place in range(count)]
    return order[::-1] if index % 2 else order


def interleaved(
    systems: Mapping[str, Callable[[], object]], given: argparse.Namespace, rounds: int = 0
) -> dict[str, list[float]]:
    """Seconds of every system in every round; the warm-up rounds before are not counted.

    Args:
        systems: What to time, by name.
        given: ``parser``'s options: rounds, warm-up, clock.
        rounds: Instead of the option's.
    """
    clock = process_time if given.clock == "cpu" else perf_counter
    names = list(systems)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-given.warmup, rounds or given.rounds):
        for place in round_order(len(names), index % (2 * len(names))):
            begin = clock()
            systems[names[place]]()
            if index >= 0:
                seconds[names[place]].append(clock() - begin)
    return seconds


def mean_by_round(samples: Sequence[Sequence[float]]) -> list[float]:
    """Mean over systems, round by round.

    >>> mean_by_round([[1.0, 2.0], [3.0, 4.0]])
    [2.0, 3.0]
    """
    return [statistics.fmean(values) for values in zip(*samples, strict=True)]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Of the ratios within each round.

    >>> ratio([1.0, 4.0, 3.0], [2.0, 4.0, 2.0]).median
    1.0
    """
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=rounds, help="fewer for a quick try")
    made.add_argument("--warmup", type=int, default=1, help="rounds that do not count")
    made.add_argument("--threads", type=int, default=2, help="of torch: all cores")
    made.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor seconds, for a busy machine, together with --threads 1",
    )
    made.add_argument("--student", default="assets/minilm", help="a Hugging Face folder")
    made.add_argument("--seed", type=int, default=0)
    return made


def start(options: argparse.Namespace) -> None:
    """Set threads and seed; leave with one sentence where an asset is missing."""
    for name in ("student", "data_dir"):
        folder = getattr(options, name, None)
        if folder is not None and not Path(folder).is_dir():
            sys.exit(f"there is no folder {folder}: run `lightning-kd assets`, or give --{name}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)


def token_batches(
    count: int, size: int, length: int, vocabulary: int, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Batches of random tokens without padding, made before anything is timed."""
    generator = torch.Generator().manual_seed(seed)

    def batch() -> dict[str, Tensor]:
        tokens = torch.randint(1000, vocabulary, (size, length), generator=generator)
        labels = torch.randint(2, (size,), generator=generator)
        mask = torch.ones_like(tokens)
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}

    return [batch() for _ in range(count)]


@dataclass(frozen=True)
class Check:
    """A measured ratio and what was wanted."""

    name: str
    ratio: Spread
    bound: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the median keeps the bound."""
        value = self.ratio.median
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        wanted = f"{'<=' if self.at_most else '>='} {self.bound:g}"
        return f"{self.name}: {self.ratio}  wanted {wanted}: {'met' if self.met else 'NOT met'}"

    def record(self) -> dict[str, Any]:
        """What goes into the JSON line."""
        value = self.ratio
        quartiles = [round(value.low, 4), round(value.high, 4)]
        kept = {"ratio": round(value.median, 4), "quartiles": quartiles, "bound": self.bound}
        return {"name": self.name, **kept, "at_most": self.at_most, "met": self.met}


def report(name: str, headline: Check, *others: Check, unit: str = "x", **more: Any) -> None:
    """Print every verdict and, as the last line, everything as JSON."""
    print()
    for check in (headline, *others):
        print(check)
    record = {**headline.record(), "name": name, "unit": unit, "what": headline.name}
    print(json.dumps({**record, "also": [check.record() for check in others], **more}), flush=True)
