"""Does a teacher that costs seven times its student cost nothing from the second epoch on?

An epoch of distillation over the same batches: with the live teacher, while its answers are being
kept, with them kept, and without any teacher work at all (the ceiling). Beside them TextBrewer's
logit cache, which holds whole batches in memory. Then the memory that a cache of few and of very
many examples takes.

    pip install --no-deps textbrewer==0.2.1.post1   # the peer; also in the `bench` extra
    python benchmarks/teacher_cache.py
"""

import argparse
import copy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import (
    Check,
    Spread,
    interleaved,
    parser,
    ratio,
    report,
    start,
    token_batches,
)
from benchmarks.textbrewer_peer import distiller
from lightning_kd.methods import VanillaKD
from lightning_kd.models import load_model
from lightning_kd.tasks import Prediction, task_named
from lightning_kd.teacher_cache import TeacherCache

Batch = dict[str, Tensor]
FEW, MANY = 10_000, 1_000_000


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, rounds=10)
    made.add_argument("--layers", type=int, default=1, help="of the student")
    made.add_argument(
        "--teacher_layers", type=int, default=9, help="7 x the student's forward pass"
    )
    made.add_argument("--batches", type=int, default=8, help="of an epoch")
    made.add_argument("--batch_size", type=int, default=32)
    made.add_argument("--length", type=int, default=64)
    made.add_argument("--memory", choices=("ours", "theirs"), help="print the memory and leave")
    made.add_argument("--examples", type=int, default=FEW, help="of --memory")
    return made.parse_args()


def bert(layers: int) -> nn.Module:
    """Of MiniLM's width, with random weights: what is measured does not depend on them."""
    from transformers import BertConfig

    config: Any = BertConfig(
        num_hidden_layers=layers, hidden_size=384, num_attention_heads=12, intermediate_size=1536
    )
    return load_model(config, task_named("sst2"))


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/smaps_rollup has no line Anonymous")


def print_memory(system: str, examples: int, length: int) -> None:
    """Fill a cache with random answers in batches of 1000, read it all, print the memory taken."""
    generator = torch.Generator().manual_seed(0)
    before = anonymous_bytes()
    with tempfile.TemporaryDirectory() as folder:
        cache = TeacherCache(Path(folder), {}, examples)
        kept = []
        for begin in range(0, examples, 1000):
            idx = torch.arange(begin, min(begin + 1000, examples))
            logits = torch.randn(len(idx), 2, generator=generator)
            if system == "ours":
                cache.keep({"idx": idx}, logits)
                cache.find({"idx": idx})
            else:  # what its cache_logits appends: the batch on its device, and the logits
                batch = {
                    n: torch.zeros(len(idx), length, dtype=torch.long) for n in ("ids", "mask")
                }
                kept.append([batch, [logits]])
        print(before, anonymous_bytes())


def memory(system: str, examples: int) -> tuple[float, float]:
    """MiB of `print_memory` in a process of its own: of the cache, and of the whole process."""
    command = [sys.executable, __file__, "--memory", system, "--examples", str(examples)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = (int(word) / 2**20 for word in ended.stdout.split())
    return after - before, after


def forwards(model: nn.Module, batches: list[Batch], given: argparse.Namespace) -> list[float]:
    """Seconds of forward passes without a graph."""

    @torch.no_grad()
    def all_batches() -> None:
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    return interleaved({"forward": all_batches}, given, rounds=3)["forward"]


def textbrewers(
    teacher: nn.Module, student: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch]
) -> Callable[[], None]:
    """An epoch from TextBrewer's cache."""
    rival = distiller(teacher, student, caching=True)
    for batch in batches:
        rival.cache_logits({k: v for k, v in batch.items() if k != "idx"}, {}, None)

    def epoch() -> None:
        for cached in rival.logits_cache:
            optimizer.zero_grad()
            torch.autograd.backward(rival.train_on_batch(cached, {})[0])
            optimizer.step()

    return epoch


def main() -> None:
    """Measure and report, or print the memory of one cache."""
    given = options()
    if given.memory:
        print_memory(given.memory, given.examples, given.length)
    else:
        measure(given)


def measure(given: argparse.Namespace) -> None:
    """Measure and report."""
    start(given)
    task, teacher = task_named("sst2"), bert(given.teacher_layers).eval()
    batches = token_batches(given.batches, given.batch_size, given.length, 30522, given.seed)
    for number, batch in enumerate(batches):
        batch["idx"] = torch.arange(given.batch_size) + number * given.batch_size
    examples = given.batches * given.batch_size
    original = bert(given.layers).train()
    folder = Path(tempfile.mkdtemp())

    def fresh(cache: str | None) -> tuple[VanillaKD, torch.optim.Optimizer]:
        module = VanillaKD(copy.deepcopy(original), task, teacher=teacher)
        if cache is not None:
            module.cache = TeacherCache(folder / cache, {}, examples)
        return module, torch.optim.AdamW(module.parameters(), lr=1e-5)

    def epoch_of(module: VanillaKD, optimizer: torch.optim.Optimizer) -> None:
        for batch in batches:
            optimizer.zero_grad()
            torch.autograd.backward(sum(module.objective(batch).values(), torch.zeros(())))
            optimizer.step()

    forward = ratio(*(forwards(model, batches, given) for model in (teacher, original)))
    live, kept, alone, capturing = fresh(None), fresh("kept"), fresh(None), fresh(None)
    epoch_of(*kept)
    answers = torch.zeros(given.batch_size, 2)
    vars(alone[0])["teach"] = lambda _: Prediction(answers)

    def capture() -> None:
        shutil.rmtree(folder / "capture", ignore_errors=True)
        capturing[0].cache = TeacherCache(folder / "capture", {}, examples)
        epoch_of(*capturing)

    rival = copy.deepcopy(original)
    optimizer = torch.optim.AdamW(rival.parameters(), lr=1e-5)
    systems: dict[str, Callable[[], object]] = {
        "live teacher": lambda: epoch_of(*live),
        "capturing": capture,
        "cached": lambda: epoch_of(*kept),
        "no teacher": lambda: epoch_of(*alone),
        "TextBrewer's cache": textbrewers(teacher, rival, optimizer, batches),
    }
    seconds = interleaved(systems, given)
    shutil.rmtree(folder)
    print("milliseconds per epoch")
    for name, values in seconds.items():
        print(f"{name:>18} | {Spread.of(values).scaled(1e3)}")
    report(
        "teacher_cache",
        Check(
            "no teacher / cached epoch",
            ratio(seconds["no teacher"], seconds["cached"]),
            0.9,
            at_most=False,
        ),
        Check("capturing / live epoch", ratio(seconds["capturing"], seconds["live teacher"]), 1.05),
        Check(
            "cached / TextBrewer's", ratio(seconds["cached"], seconds["TextBrewer's cache"]), 1.03
        ),
        Check("anonymous memory with 1M / 10k examples", Spread.of([growth()]), 1.05),
        live_over_cached=round(ratio(seconds["live teacher"], seconds["cached"]).median, 3),
        teacher_over_student_forward=round(forward.median, 2),
        threads=given.threads,
        clock=given.clock,
    )


def growth() -> float:
    """Print the memory of both caches; returns by what our process grows from few to many."""
    sizes = {(s, n): memory(s, n) for s in ("ours", "theirs") for n in (FEW, FEW * 10)}
    sizes["ours", MANY] = memory("ours", MANY)
    for (system, count), (size, whole) in sizes.items():
        print(f"anonymous memory of {count:,} examples, {system}: {size:.1f} of {whole:.0f} MiB")
    return sizes["ours", MANY][1] / sizes["ours", FEW][1]


if __name__ == "__main__":
    main()
