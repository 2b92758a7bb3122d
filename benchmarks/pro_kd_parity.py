"""Does a trajectory teach what its end does not? Sparse parity, as in Pro-KD's checks.

    python benchmarks/pro_kd_parity.py

Inputs are 24 signs, the label is whether the product of five of them is positive. Networks have
one hidden layer; a teacher of 512 units and students of 24 see equally many fresh examples. Each
student gets the same examples, from the same initial state, and differs in what it is told: the
labels, the last teacher, or sixteen checkpoints one after the other. Prints the accuracy at the end
and the steps to 90 %, per seed.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_kd.functional import (
    annealed_logit_mse,
    checkpoint_of_epoch,
    checkpoint_temperature,
    kd_loss,
    smoothing_factor,
)

SIGNS, DEGREE, BATCH, EVERY = 24, 5, 64, 500
Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Arm:
    """A way to be told.

    Attributes:
        loss: Of the student's logits, the teacher's, the labels and the smoothing factor.
        follows: Whether the teacher is the checkpoint of the step, or the last one.
        smooth: Whether the factor rises with the checkpoints, or is 1.
        slower: Divides the learning rate.
    """

    loss: Loss
    follows: bool = False
    smooth: bool = False
    slower: float = 1.0


def labels_alone(student: Tensor, teacher: Tensor, labels: Tensor, factor: float) -> Tensor:
    """Cross-entropy."""
    del teacher, factor
    return cross_entropy(student, labels)


def divergence(student: Tensor, teacher: Tensor, labels: Tensor, factor: float) -> Tensor:
    """KL divergence of the two softmaxes."""
    del labels, factor
    return kd_loss(student, teacher).mean()


def distance(student: Tensor, teacher: Tensor, labels: Tensor, factor: float) -> Tensor:
    """Squared distance of the logits, summed over the two classes."""
    del labels
    return annealed_logit_mse(student, teacher, factor, reduction="sum").mean()


ARMS = {
    "labels": Arm(labels_alone),
    "KL, last teacher": Arm(divergence),
    "KL, trajectory": Arm(divergence, follows=True),
    "MSE, trajectory": Arm(distance, follows=True, slower=4),
    "MSE, trajectory, phi": Arm(distance, follows=True, smooth=True, slower=4),
    "MSE, last teacher": Arm(distance, slower=4),
    "MSE, last teacher, phi": Arm(distance, smooth=True, slower=4),
}


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {
        "seeds": 4, "steps": 16_000, "checkpoints": 16, "teacher_width": 512, "width": 24,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    return parser.parse_args(args)


def network(width: int, seed: int) -> nn.Sequential:
    """The same for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(SIGNS, width), nn.ReLU(), nn.Linear(width, 2))


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Signs ``[count, 24]`` and labels."""
    signs = torch.randint(2, (count, SIGNS), generator=generator).float() * 2 - 1
    return signs, (signs[:, :DEGREE].prod(1) > 0).long()


@torch.no_grad()
def accuracy(model: nn.Module, signs: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    return float((model(signs).argmax(1) == labels).float().mean())


def record(options: argparse.Namespace, seed: int) -> list[dict[str, Tensor]]:
    """The teacher's checkpoints in the order of its training."""
    teacher = network(options.teacher_width, 1000 + seed)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=options.learning_rate)
    generator = torch.Generator().manual_seed(2000 + seed)
    states, kept = [], options.steps // options.checkpoints
    for step in range(1, options.steps + 1):
        signs, labels = draw(BATCH, generator)
        optimizer.zero_grad()
        cross_entropy(teacher(signs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % kept == 0:
            states.append({name: value.clone() for name, value in teacher.state_dict().items()})
    return states


def learn(
    arm: Arm, states: list[dict[str, Tensor]], options: argparse.Namespace, seed: int
) -> tuple[float, int | None]:
    """A student's accuracy at the end, and the steps after which it first had 90 %."""
    student, teacher = network(options.width, seed), network(options.teacher_width, 0)
    rate = options.learning_rate / arm.slower
    optimizer = torch.optim.SGD(student.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(3000 + seed)
    test = draw(4096, torch.Generator().manual_seed(4000))
    found, reached, standing = 0.0, None, 0
    for step in range(options.steps):
        j = checkpoint_of_epoch(step, options.steps, len(states))
        factor = 1.0
        if arm.smooth:
            temperature = checkpoint_temperature(j, len(states), len(states))
            factor = smoothing_factor(float(temperature), len(states))
        wanted = j if arm.follows else len(states)
        if wanted != standing:
            teacher.load_state_dict(states[wanted - 1])
            standing = wanted
        signs, labels = draw(BATCH, generator)
        with torch.no_grad():
            taught = teacher(signs)
        optimizer.zero_grad()
        loss = arm.loss(student(signs), taught, labels, factor)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step + 1) % EVERY == 0:
            found = accuracy(student, *test)
            reached = step + 1 if reached is None and found >= 0.9 else reached
    return found, reached


def main(args: list[str] | None = None) -> None:
    """Train all arms on all seeds and print them."""
    options = parse(args)
    torch.set_num_threads(1)
    results: dict[str, list[tuple[float, int | None]]] = {name: [] for name in ARMS}
    for seed in range(options.seeds):
        states = record(options, seed)
        teacher = network(options.teacher_width, 0)
        path = []
        for state in states:
            teacher.load_state_dict(state)
            path.append(accuracy(teacher, *draw(4096, torch.Generator().manual_seed(4000))))
        print(f"seed {seed}: teacher {' '.join(f'{a:.2f}' for a in path)}", flush=True)
        for name, arm in ARMS.items():
            results[name].append(learn(arm, states, options, seed))
            print(f"  {name:24} {results[name][-1]}", flush=True)
    print(f"\n{'student':24}  {'final accuracy':28}  steps to 90 %")
    for name, found in results.items():
        final = "  ".join(f"{value:.2f}" for value, _ in found)
        steps = "  ".join("-" if reached is None else str(reached) for _, reached in found)
        print(f"{name:24}  {final:28}  {steps}")
    follows, last = results["KL, trajectory"], results["KL, last teacher"]
    late = options.steps + 1
    holds = [
        accurate >= 0.95 and (reached or late) < (other or late)
        for (accurate, reached), (_, other) in zip(follows, last, strict=True)
    ]
    print(json.dumps({"name": "pro_kd_parity", "holds": holds, "results": results}))


if __name__ == "__main__":
    main()
