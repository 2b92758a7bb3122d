"""Which checkpoint teaches best, and does following them all do as well without a search?

    python benchmarks/checkpoint_search.py          # needs scikit-learn, for its handwritten digits

A wide teacher learns digits of which 20 % have a wrong label and is kept after each of 40 epochs;
the late ones know the wrong labels by heart. Students with 4, 6 and 16 hidden units learn from the
labels, from one of ten checkpoints alone (the search), or along all ten (Pro-KD, with and without a
second phase on the labels), for equally many epochs, each time with the epoch that is best on clean
validation. Prints test accuracies, mean and standard error over the seeds.

All students of a size train in one batched network, whose slices share batches and nothing else.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_kd.functional import (
    annealed_logit_mse,
    checkpoint_of_epoch,
    checkpoint_temperature,
    evenly_kept,
    kd_loss,
    smoothing_factor,
)

BATCH, CLASSES = 32, 10
Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """Inputs ``[n, d]`` and labels ``[n]``; those of ``train`` are partly wrong."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class Arm:
    """What one student learns from.

    Attributes:
        loss: ``labels``, ``mse`` or ``kl``.
        checkpoint: The one of a search, from 1; 0 follows all.
        label_epochs: The last epochs, on the labels alone and from the best student so far.
    """

    loss: str
    checkpoint: int = 0
    label_epochs: int = 0

    @property
    def name(self) -> str:
        """Its row in the table."""
        if self.loss == "labels":
            return "labels"
        way = f"checkpoint {self.checkpoint}" if self.checkpoint else "Pro-KD"
        return f"{self.loss}, {way}{', then labels' if self.label_epochs else ''}"


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {
        "seeds": 10, "epochs": 100, "label_epochs": 25, "teacher_epochs": 40,
        "teacher_width": 512, "checkpoints": 10, "max_temperature": 10,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 6, 16])
    parser.add_argument("--flip", type=float, default=0.2, help="share of wrong training labels")
    parser.add_argument("--temperature", type=float, default=4.0, help="of KL from one checkpoint")
    parser.add_argument("--learning_rate", type=float, default=1e-2, help="of students (Adam)")
    return parser.parse_args(args)


def digits() -> Split:
    """The 1,797 images of 8 x 8 of scikit-learn, in [0, 1]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("the digits come with scikit-learn: pip install -e .[bench]") from error
    found = load_digits()
    return torch.tensor(found.data).float() / 16, torch.tensor(found.target).long()


def split(examples: Split, flip: float, seed: int) -> Data:
    """60 % to train on, of which a share gets another label; 20 % each to choose and to report."""
    inputs, labels = examples
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    ends = [int(0.6 * len(order)), int(0.8 * len(order))]
    train, validation, test = order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]
    noisy = labels[train].clone()
    wrong = torch.randperm(len(noisy), generator=generator)[: round(flip * len(noisy))]
    noisy[wrong] = (noisy[wrong] + torch.randint(1, CLASSES, wrong.shape, generator=generator)) % 10
    return Data(
        (inputs[train], noisy),
        (inputs[validation], labels[validation]),
        (inputs[test], labels[test]),
    )


def batches(count: int, generator: torch.Generator) -> Sequence[Tensor]:
    """An epoch's lists of indices."""
    return torch.split(torch.randperm(count, generator=generator), BATCH)


def teach(data: Data, options: argparse.Namespace, seed: int) -> tuple[Tensor, list[float]]:
    """Logits ``[k, n, 10]`` of the checkpoints for the training set, and their test accuracies."""
    torch.manual_seed(seed)
    inputs, labels = data.train
    width = options.teacher_width
    teacher = nn.Sequential(
        nn.Linear(inputs.shape[1], width), nn.ReLU(),
        nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(100 + seed)
    kept = evenly_kept(options.teacher_epochs, options.checkpoints)
    answers, scores = [], []
    for epoch in range(1, options.teacher_epochs + 1):
        for rows in batches(len(labels), generator):
            optimizer.zero_grad()
            loss = cross_entropy(teacher(inputs[rows]), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if epoch in kept:
            with torch.no_grad():
                answers.append(teacher(inputs))
                right = teacher(data.test[0]).argmax(1) == data.test[1]
                scores.append(float(right.float().mean()))
    return torch.stack(answers), scores


class Students(nn.Module):
    """As many networks with one hidden layer as there are arms, all of the same initial state."""

    def __init__(self, arms: int, inputs: int, width: int) -> None:
        super().__init__()
        layers = (nn.Linear(inputs, width), nn.Linear(width, CLASSES))
        values = [p for layer in layers for p in (layer.weight.t(), layer.bias[None])]
        self.weights = nn.ParameterList([v.detach().repeat(arms, 1, 1) for v in values])

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[arms, b, 10]`` for ``[b, d]``."""
        first, bias, last, last_bias = self.weights
        return (inputs @ first + bias).relu() @ last + last_bias


Groups = dict[tuple[str, float], tuple[list[int], list[int]]]


def groups_of(arms: Sequence[Arm], epoch: int, options: argparse.Namespace) -> Groups:
    """Arms of an epoch that share a loss and its factor or temperature, and their checkpoints."""
    found: Groups = {}
    count, highest = options.checkpoints, options.max_temperature
    for i, arm in enumerate(arms):
        following = options.epochs - arm.label_epochs
        j = arm.checkpoint or checkpoint_of_epoch(epoch, following, count)
        falling = float(checkpoint_temperature(j, count, highest))
        value = smoothing_factor(falling, highest) if arm.loss == "mse" else falling
        if arm.checkpoint:
            value = 1.0 if arm.loss == "mse" else options.temperature
        labels = arm.loss == "labels" or epoch >= following
        key = ("labels", 1.0) if labels else (arm.loss, value)
        for part, number in zip(found.setdefault(key, ([], [])), (i, j - 1), strict=True):
            part.append(number)
    return found


def total_loss(groups: Groups, students: Tensor, answers: Tensor, labels: Tensor) -> Tensor:
    """Sum over arms of their mean loss in a batch.

    Args:
        groups: Of the epoch, as `groups_of` gives them.
        students: Logits ``[arms, b, 10]``.
        answers: Logits of the checkpoints ``[k, b, 10]``.
        labels: ``[b]``.
    """
    total = torch.zeros(())
    for (loss, value), (arms, checkpoints) in groups.items():
        ours, theirs = students[arms], answers[checkpoints]
        if loss == "labels":
            each = cross_entropy(
                ours.flatten(0, 1), labels.repeat(len(arms)), reduction="none"
            ).view(len(arms), -1)
        elif loss == "kl":
            each = kd_loss(ours, theirs, value)
        else:
            each = annealed_logit_mse(ours, theirs, value)
        total = total + each.mean(1).sum()
    return total


def learn(
    arms: Sequence[Arm], data: Data, answers: Tensor, width: int, options: argparse.Namespace,
    seed: int,
) -> list[float]:  # fmt: skip
    """Test accuracy of each arm's student, at the epoch that is best on validation."""
    torch.manual_seed(200 + seed)
    inputs, labels = data.train
    students = Students(len(arms), inputs.shape[1], width)
    optimizer = torch.optim.Adam(students.parameters(), lr=options.learning_rate)
    generator = torch.Generator().manual_seed(300 + seed)
    best = torch.full((len(arms),), -1.0)
    kept = [weight.detach().clone() for weight in students.weights]
    for epoch in range(options.epochs):
        for i, arm in enumerate(arms):
            if arm.label_epochs and epoch == options.epochs - arm.label_epochs:
                _restart(students, optimizer, kept, i)
        groups = groups_of(arms, epoch, options)
        for rows in batches(len(labels), generator):
            optimizer.zero_grad()
            logits = students(inputs[rows])
            loss = total_loss(groups, logits, answers[:, rows], labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            right = students(data.validation[0]).argmax(-1) == data.validation[1]
            scores = right.float().mean(1)
            better = scores > best
            best = torch.where(better, scores, best)
            for mine, weight in zip(kept, students.weights, strict=True):
                mine[better] = weight[better]
    with torch.no_grad():
        for weight, mine in zip(students.weights, kept, strict=True):
            weight.copy_(mine)
        right = students(data.test[0]).argmax(-1) == data.test[1]
    return [float(score) for score in right.float().mean(1)]


@torch.no_grad()
def _restart(
    students: Students, optimizer: torch.optim.Adam, kept: Sequence[Tensor], arm: int
) -> None:
    """Give one arm its best student so far, and fresh moments."""
    for weight, mine in zip(students.weights, kept, strict=True):
        weight[arm] = mine[arm]
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[weight][name][arm] = 0


def arms_of(options: argparse.Namespace) -> list[Arm]:
    """Labels alone; then the search and Pro-KD with either loss."""
    found = [Arm("labels")]
    for loss in ("mse", "kl"):
        found += [Arm(loss, j + 1) for j in range(options.checkpoints)]
        found += [Arm(loss), Arm(loss, label_epochs=options.label_epochs)]
    return found


def main(args: list[str] | None = None, examples: Split | None = None) -> None:
    """Run everything and print a table per width, then what it comes to."""
    options = parse(args)
    torch.set_num_threads(1)
    examples = digits() if examples is None else examples
    arms = arms_of(options)
    scores: dict[int, list[list[float]]] = {width: [] for width in options.widths}
    teachers = []
    for seed in range(options.seeds):
        data = split(examples, options.flip, seed)
        answers, found = teach(data, options, seed)
        teachers.append(found)
        for width in options.widths:
            scores[width].append(learn(arms, data, answers, width, options, seed))
        print(f"seed {seed} done", flush=True)
    print("teacher   " + "  ".join(f"{100 * statistics.fmean(t):.1f}" for t in zip(*teachers)))  # noqa: B905
    gates = {}
    for width, runs in scores.items():
        points = {arm: [100 * run[i] for run in runs] for i, arm in enumerate(arms)}
        print(f"\n{width} hidden units, test accuracy in points")
        for arm, values in points.items():
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            print(f"  {arm.name:26} {statistics.fmean(values):6.2f} ± {error:.2f}")
        means = {arm: statistics.fmean(values) for arm, values in points.items()}
        for loss in ("mse", "kl"):
            single = {j: means[Arm(loss, j)] for j in range(1, options.checkpoints + 1)}
            pro = means[Arm(loss)]
            best = max(single, key=lambda j: single[j])
            gates[f"{width} {loss}"] = {
                "best_checkpoint": best,
                "above_the_last": round(pro - single[options.checkpoints], 2),
                "below_the_best": round(single[best] - pro, 2),
            }
    print(json.dumps({"name": "checkpoint_search", "gates": gates}))


if __name__ == "__main__":
    main()
