"""The label regularization study in small, on images: does a regularized label help, and whom?

The vision twin of `label_regularization_study.py`, which takes minutes: scikit-learn's digits, 100
labels to train on and 797 test images. The student is 64-64-10; its first layer is pre-trained as a
denoising autoencoder on 1000 images without labels, or drawn at random. The teacher of ``kd`` is
64-256-10, pre-trained likewise; the copy that teaches ``self_kd`` is the run of ``none`` with that
seed. Every arm gets four trials on 200 held-out images in each initial state, and the chosen
setting runs with fresh seeds; equal seeds share head, images and order.

    pip install -e .[bench]
    python benchmarks/label_regularization_digits.py
"""

import argparse
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from benchmarks.label_regularization_report import Record, print_report
from lightning_kd.functional import confidence, label_smoothing_loss, taught_loss, tf_reg_loss

ARMS = ("none", "label_smoothing", "tf_reg", "self_kd", "kd")
INITS = ("pretrained", "random")
UNLABELLED, LABELLED, HELD_OUT = 1000, 100, 200
STEPS, BATCH, AUTOENCODER_STEPS = 300, 20, 2000
WIDTHS = {"student": 64, "teacher": 256}
TUNING_SEED = 1000
"""Of all trials that choose a setting; no reported run has it."""

RATES = (1e-3, 3e-3)
TAUGHT = ({"alpha": 0.5, "temperature": 1.0}, {"alpha": 0.9, "temperature": 2.0})
SETTINGS: dict[str, tuple[dict[str, float], ...]] = {
    "label_smoothing": ({"alpha": 0.1}, {"alpha": 0.2}),
    "tf_reg": ({"alpha": 0.5, "gold": 0.9}, {"alpha": 0.5, "gold": 0.99}),
    "self_kd": TAUGHT,
    "kd": TAUGHT,
}
LOSSES: dict[str, Callable[..., Tensor]] = {
    "none": partial(cross_entropy, reduction="none"),
    "label_smoothing": label_smoothing_loss,
    "tf_reg": tf_reg_loss,
}
Setting = dict[str, float]


def grid(arm: str) -> list[Setting]:
    """Four trials for every arm, so that none wins by being searched more."""
    if arm == "none":
        return [{"learning_rate": rate} for rate in (RATES[0] / 3, *RATES, 3 * RATES[1])]
    return [{"learning_rate": rate, **more} for rate in RATES for more in SETTINGS[arm]]


class Digits:
    """Images of one seed: labelled and held-out ones, and those without labels.

    Args:
        seed: Which 100 of the 1000 have labels; the test images are the same for all seeds.
    """

    def __init__(self, seed: int) -> None:
        from sklearn.datasets import load_digits

        images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        images, labels = images[order].float() / 16, labels[order]
        drawn = torch.randperm(UNLABELLED, generator=torch.Generator().manual_seed(seed + 1))
        self.unlabelled = images[:UNLABELLED]
        self.train = drawn[:LABELLED]
        held_out = drawn[LABELLED : LABELLED + HELD_OUT]
        self.images, self.labels = images[self.train], labels[self.train]
        self.held_out = images[held_out], labels[held_out]
        self.test = images[UNLABELLED:], labels[UNLABELLED:]


@cache
def encoder(who: str) -> dict[str, Tensor]:
    """A first layer that was pre-trained to remove noise, without labels."""
    torch.manual_seed(0)
    images, width = Digits(0).unlabelled, WIDTHS[who]
    first, back = nn.Linear(64, width), nn.Linear(width, 64)
    optimizer = torch.optim.Adam([*first.parameters(), *back.parameters()], lr=1e-3, fused=True)
    for _ in range(AUTOENCODER_STEPS):
        clean = images[torch.randint(len(images), (64,))]
        noisy = clean * (torch.rand_like(clean) > 0.3)
        loss = mse_loss(back(first(noisy).relu()), clean)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return {name: value.detach() for name, value in first.state_dict().items()}


def network(who: str, init: str, seed: int) -> nn.Sequential:
    """First layer pre-trained or of the seed; the head is the seed's in both cases."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(64, WIDTHS[who]), nn.ReLU(), nn.Linear(WIDTHS[who], 10))
    if init == "pretrained":
        made[0].load_state_dict(encoder(who))
    return made


def trained(
    arm: str,
    init: str,
    seed: int,
    setting: Setting,
    teacher: nn.Module | None = None,
    who: str = "student",
) -> nn.Module:
    """The last weights of a run."""
    digits, model = Digits(seed), network(who, init, seed)
    options: dict[str, Any] = dict(setting)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.pop("learning_rate"), fused=True)
    order = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        rows = torch.randperm(LABELLED, generator=order)[:BATCH]
        images, labels = digits.images[rows], digits.labels[rows]
        if teacher is None:
            losses = LOSSES[arm](model(images), labels, **options)
        else:
            with torch.no_grad():
                answers = teacher(images)
            losses = taught_loss(model(images), answers, labels, **options)
        optimizer.zero_grad()
        torch.autograd.backward(losses.mean())
        optimizer.step()
    return model


@torch.no_grad()
def scores(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, calibration and confidence."""
    logits = model(images)
    largest, entropy = confidence(logits)
    return {
        "accuracy": float((logits.argmax(-1) == labels).double().mean()),
        "ece": float(multiclass_calibration_error(logits.softmax(-1), labels, 10)),
        "max_probability": float(largest.mean()),
        "entropy": float(entropy.mean()),
        "answered_classes": len(set(logits.argmax(-1).tolist())),
    }


class Study:
    """All arms in both initial states."""

    def __init__(self, seeds: int) -> None:
        self.seeds = seeds
        self.records: list[Record] = []
        self.chosen: dict[tuple[str, str], Setting] = {}

    def teacher(self, arm: str, init: str, seed: int) -> nn.Module | None:
        """Who teaches a run of this arm and seed."""
        if arm == "kd":
            return trained("none", "pretrained", seed, {"learning_rate": 1e-3}, who="teacher")
        if arm == "self_kd":
            return trained("none", init, seed, self.chosen["none", init])
        return None

    def run(self) -> None:
        """Choose on the held-out images, then score fresh seeds on the test images."""
        for init in INITS:
            for arm in ARMS:
                found = {}
                for i, setting in enumerate(grid(arm)):
                    teacher = self.teacher(arm, init, TUNING_SEED)
                    model = trained(arm, init, TUNING_SEED, setting, teacher)
                    found[i] = scores(model, *Digits(TUNING_SEED).held_out)["accuracy"]
                best = grid(arm)[max(found, key=lambda i: found[i])]
                self.chosen[arm, init] = best
                print(f"{init} {arm}: {best}", flush=True)
                for seed in range(self.seeds):
                    model = trained(arm, init, seed, best, self.teacher(arm, init, seed))
                    self.records.append(self.record(arm, init, seed, best, model))

    @staticmethod
    def record(arm: str, init: str, seed: int, setting: Setting, model: nn.Module) -> Record:
        """As `label_regularization_report` wants it."""
        place: dict[str, Any] = {"stage": "report", "arm": arm, "init": init, "seed": seed}
        options = {"task": "digits", "metric": "accuracy", "classes": 10}
        found = scores(model, *Digits(seed).test)
        return {**place, "setting": setting, "scores": found, "failed": None, "options": options}


def main(args: list[str] | None = None) -> None:
    """Run everything and print what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--margin", type=float, default=1.0, help="points that would matter")
    parser.add_argument("--output", type=Path, default=None, help="a .jsonl file for the runs")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    study = Study(options.seeds)
    study.run()
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("".join(json.dumps(record) + "\n" for record in study.records))
    print_report(study.records, options.margin)


if __name__ == "__main__":
    main()
