"""What does a distillation step cost beside TextBrewer's?

Forward of student and teacher, tempered KL and cross-entropy, backward, AdamW, on the same models
and batches: the MiniLM encoder teaches its first layers. TextBrewer's step is what its
``BasicDistiller`` does with a batch, without its TensorBoard, and the AdamW of its examples; ours
has the fused AdamW that `TaskModule` makes, and once TextBrewer's. The limit beside both: the
student's own step and the teacher's forward pass.

    pip install --no-deps textbrewer==0.2.1.post1   # the peer; also in the `bench` extra
    python benchmarks/kd_step.py
"""

import argparse
import copy
from collections.abc import Callable
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
from benchmarks.textbrewer_peer import TEMPERATURE, distiller
from lightning_kd.methods import VanillaKD
from lightning_kd.models import load_model
from lightning_kd.nn import keep_layers
from lightning_kd.tasks import task_named

Batch = dict[str, Tensor]


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, rounds=20)
    made.add_argument("--layers", type=int, default=3, help="of the student")
    made.add_argument("--batch_size", type=int, default=32)
    made.add_argument("--length", type=int, default=64)
    return made.parse_args()


def main() -> None:
    """Measure and report."""
    given = options()
    start(given)
    task = task_named("sst2")
    teacher: Any = load_model(given.student, task).eval().requires_grad_(requires_grad=False)
    first: Any = load_model(given.student, task).train()
    keep_layers(first, given.layers)
    second, third, fourth = (copy.deepcopy(first) for _ in range(3))
    module, again = (
        VanillaKD(student, task, teacher=teacher, alpha=0.5, temperature=TEMPERATURE)
        for student in (first, fourth)
    )
    rival = distiller(teacher, second, caching=False)

    def ours(batch: Batch) -> Tensor:
        return sum(module.objective(batch).values(), torch.zeros(()))

    def unfused(batch: Batch) -> Tensor:
        return sum(again.objective(batch).values(), torch.zeros(()))

    def theirs(batch: Batch) -> Tensor:
        loss: Tensor = rival.train_on_batch(batch, {})[0]
        return loss

    def limit(batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        loss: Tensor = third(**batch).loss
        return loss

    batches = token_batches(4, given.batch_size, given.length, 30522, given.seed)

    def step(
        model: nn.Module, loss: Callable[[Batch], Tensor], *, fused: bool = False
    ) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)
        turn = iter(batches * 10**6)

        def one() -> None:
            optimizer.zero_grad()
            torch.autograd.backward(loss(next(turn)))
            optimizer.step()

        return one

    systems = {
        "lightning-kd": step(first, ours, fused=True),  # as `TaskModule` makes it
        "same AdamW": step(fourth, unfused),
        "TextBrewer": step(second, theirs),
        "limit": step(third, limit, fused=True),
    }
    seconds = interleaved(systems, given)
    print("milliseconds per step")
    for name, values in seconds.items():
        print(f"{name:>12} | {Spread.of(values).scaled(1e3)}")
    report(
        "kd_step",
        Check("step / TextBrewer", ratio(seconds["lightning-kd"], seconds["TextBrewer"]), 1.0),
        Check(
            "step with TextBrewer's AdamW / TextBrewer",
            ratio(seconds["same AdamW"], seconds["TextBrewer"]),
            1.0,
        ),
        Check(
            "step / student's step + teacher's forward pass",
            ratio(seconds["lightning-kd"], seconds["limit"]),
            1.05,
        ),
        threads=given.threads,
        clock=given.clock,
    )


if __name__ == "__main__":
    main()
