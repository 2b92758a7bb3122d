"""What the digits have to show is decided by the bounds, and trials are functions of their seed."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.noisy_label_digits import TRAIN, Digits, Trial, taught, verdicts
from lightning_kd.functional import kd_loss

NAMES = ("labels alone", "kd, noisy student", "kd, noisy teacher", "kd, both", "co_distill")


def trial(*values: float) -> dict[str, float]:
    return dict(zip((*NAMES, "hard, threshold 0.6", "filter"), values, strict=True))


def test_the_bounds_are_those_of_the_check() -> None:
    good = {0.0: [trial(*[0.96] * 5, 0.93, 0.945)]}
    good[0.4] = [trial(0.85, 0.92, 0.92, 0.84, 0.88, 0.85, 0.89)] * 2
    assert all(holds for _, _, holds in verdicts(good).values())
    assert len(verdicts(good)) == 8
    bad = {0.0: [trial(0.9, 0.9, 0.9, 0.96, 0.94, 0.93, 0.93)]}
    bad[0.4] = [trial(0.88, 0.93, 0.93, 0.85, 0.87, 0.88, 0.88)]
    failed = {name for name, (_, _, holds) in verdicts(bad).items() if not holds}
    assert len(failed) == 7  # all but "labels alone are not below": they are above by too much
    assert "noise 0.4: labels alone above kd, both" not in failed


def test_a_trial_is_a_function_of_seed_and_rate() -> None:
    images = torch.rand(TRAIN, 64)
    digits = Digits(images, torch.arange(TRAIN) % 10, images, torch.arange(TRAIN) % 10)
    one, same, other = (Trial(digits, 0.3, seed, "he") for seed in (0, 0, 1))
    assert torch.equal(one.noisy, same.noisy)
    assert not torch.equal(one.noisy, other.noisy)
    assert (one.noisy != digits.labels).double().mean().item() == pytest.approx(0.3, abs=0.05)
    networks = [t.network((64, 8, 10), "x") for t in (one, same, other)]
    first, second, third = (network.state_dict()["0.weight"] for network in networks)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_the_loss_is_the_mixture_and_leaves_vetoed_labels_out() -> None:
    logits, teacher, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    rows, keep = torch.arange(4), torch.tensor([True, False, True, True])
    hard = cross_entropy(logits, labels, reduction="none")
    soft = kd_loss(logits, teacher)
    expected = (0.4 * hard * keep + 0.6 * soft).mean()
    torch.testing.assert_close(taught(labels, teacher, 0.6, keep)(logits, rows), expected)
    blended = 0.5 * (0.2 * hard - 0.8 * (teacher.softmax(-1) * logits.log_softmax(-1)).sum(-1))
    found = taught(labels, teacher, blend=0.8)(logits, rows)
    torch.testing.assert_close(found, (blended + 0.5 * soft).mean())
