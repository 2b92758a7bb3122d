"""How much memory does distillation over a vocabulary take beside TRL's GKD loss?

Peak of what one loss and its backward pass allocate, from the states of student and teacher to the
gradients of the student's state and head: TRL's ``generalized_jsd_loss`` on the logits of both
heads, and `linear_kd_loss`. Then the same from logits that are there already: `token_kd_loss`. The
values and gradients are compared first, in all three divergences; the ratios are the worst of the
three. Seconds are reported without a bound.

    pip install --no-deps trl==1.16.0   # the peer; it needs accelerate, which peft brings
    python benchmarks/token_kd_memory.py
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Check, Spread, interleaved, parser, ratio, report
from benchmarks.memory import peak_bytes
from lightning_kd.functional import linear_kd_loss, token_kd_loss
from lightning_kd.functional.token_kd import DIVERGENCES

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
TEMPERATURE = 2.0
Loss = Callable[[], Tensor]


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, rounds=5)
    made.add_argument("--tokens", type=int, default=512)
    made.add_argument("--width", type=int, default=256, help="of both models")
    made.add_argument("--vocabulary", type=int, default=32768)
    made.add_argument("--chunk_size", type=int, default=128)
    return made.parse_args()


def peer() -> Any:
    """TRL's function."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss


def gradients(loss: Loss, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The loss and what it does to the student."""
    value = loss()
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def worst_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest of any entry."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def losses(given: argparse.Namespace, divergence: str, theirs: Any) -> dict[str, tuple[Loss, Any]]:
    """Losses by name, with the tensors that they train."""
    generator = torch.Generator().manual_seed(given.seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    states = [normal(given.tokens, given.width) for _ in range(2)]
    heads = [normal(given.vocabulary, given.width, scale=0.1) for _ in range(2)]
    logits = states[0] @ heads[0].t(), states[1] @ heads[1].t()
    for tensor in (states[0], heads[0], logits[0]):
        tensor.requires_grad_()
    settings: Any = (divergence, BETA[divergence], TEMPERATURE, given.chunk_size)

    def dense(student: Tensor, teacher: Tensor) -> Tensor:
        value: Tensor = theirs(student, teacher, None, BETA[divergence], TEMPERATURE, "batchmean")
        return value * TEMPERATURE**2

    def mean(values: Tensor) -> Tensor:
        return values.sum() / given.tokens

    trained = (states[0], heads[0])
    return {
        "linear_kd_loss": (
            lambda: mean(linear_kd_loss(states[0], heads[0], states[1], heads[1], *settings)),
            trained,
        ),
        "TRL from states": (
            lambda: dense(states[0] @ heads[0].t(), states[1] @ heads[1].t()),
            trained,
        ),
        "token_kd_loss": (lambda: mean(token_kd_loss(*logits, *settings)), (logits[0],)),
        "TRL from logits": (lambda: dense(*logits), (logits[0],)),
    }


def main() -> None:
    """Measure and report."""
    given = options()
    torch.set_num_threads(given.threads)
    theirs = peer()
    memory: dict[str, list[float]] = {}
    times: dict[str, list[Spread]] = {}
    difference = 0.0
    for divergence in DIVERGENCES:
        systems = {
            name: partial(gradients, *pair)
            for name, pair in losses(given, divergence, theirs).items()
        }
        results = {name: system() for name, system in systems.items()}
        pairs = (("linear_kd_loss", "TRL from states"), ("token_kd_loss", "TRL from logits"))
        difference = max(difference, *(worst_difference(results[a], results[b]) for a, b in pairs))
        del results
        peaks = {name: peak_bytes(system) for name, system in systems.items()}
        seconds = interleaved(systems, given)
        print(f"{divergence}: MB, seconds")
        for name, peak in peaks.items():
            print(f"{name:>16} | {peak / 2**20:7.0f} | {Spread.of(seconds[name])}")
        for ours, other in pairs:
            memory.setdefault(ours, []).append(peaks[ours] / peaks[other])
            times.setdefault(ours, []).append(ratio(seconds[ours], seconds[other]))
    worst = {name: Spread.of([max(values)]) for name, values in memory.items()}
    report(
        "token_kd_memory",
        Check("linear_kd_loss / TRL's GKD from states, peak memory", worst["linear_kd_loss"], 0.35),
        Check("token_kd_loss / TRL's GKD from logits, peak memory", worst["token_kd_loss"], 0.35),
        Check("largest difference of a value or gradient", Spread.of([difference]), 1e-5),
        seconds={
            name: [round(value.median, 3) for value in values] for name, values in times.items()
        },
        largest_difference=difference,
        threads=given.threads,
        vocabulary=given.vocabulary,
        chunk_size=given.chunk_size,
    )


if __name__ == "__main__":
    main()
