"""Label noise is a function of (seed, idx) alone, and reported as it was observed."""

import math

import pytest
import torch

from lightning_kd.data import FlipLabels
from lightning_kd.tasks import Classification, Regression
from tests.data.conftest import Shout, sentence, write

TWO, THREE = (Classification(str(k), tuple("abc"[:k])) for k in (2, 3))
LABELS, IDX = torch.arange(10_000) % 3, torch.arange(10_000)
MATRIX = [[0.5, 0.2, 0.3], [0.0, 1.0, 0.0], [0.6, 0.4, 0.0]]


def noise(*args, task=THREE, **options) -> FlipLabels:
    made = FlipLabels(*args, **options)
    made.prepare(task)
    return made


def labels_of(data, loader="train_dataloader") -> dict[int, int]:
    made = getattr(data, loader)()
    batches = made[0] if isinstance(made, list) else made
    pairs = [zip(b["idx"].tolist(), b["labels"].tolist(), strict=True) for b in batches]
    return {idx: label for pair in pairs for idx, label in pair}


@pytest.mark.parametrize(
    ("kind", "expected"), [("symmetric", 0.3), ("uniform", 0.2), ("pair", 0.3)]
)
def test_check_1_the_observed_rate_is_within_three_sigma(kind, expected) -> None:
    flipped = noise(0.3, seed=1, kind=kind).flip(LABELS, IDX)
    rate = float((flipped != LABELS).double().mean())
    assert abs(rate - expected) < 3 * math.sqrt(expected * (1 - expected) / 10_000) <= 0.0138


def test_check_1_an_exact_count_is_exact_and_goes_to_all_other_classes() -> None:
    flipped = noise(0.3, kind="exact_count").flip(LABELS, IDX)
    assert int((flipped != LABELS).sum()) == 3000
    steps = ((flipped - LABELS) % 3).bincount()
    assert abs(int(steps[1]) - 1500) < 3 * math.sqrt(3000) / 2


def test_check_1_the_same_seed_gives_the_same_labels_and_another_one_others() -> None:
    first, second = (noise(0.3, seed=4).flip(LABELS, IDX) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, noise(0.3, seed=5).flip(LABELS, IDX))


def test_pair_noise_goes_to_the_next_class() -> None:
    flipped = noise(0.4, kind="pair").flip(LABELS, IDX)
    assert set(((flipped - LABELS) % 3).tolist()) == {0, 1}


def test_asymmetric_noise_follows_its_matrix() -> None:
    flipped = noise(kind="asymmetric", matrix=MATRIX).flip(LABELS, IDX)
    for label, row in enumerate(MATRIX):
        these = LABELS.eq(label)
        found = flipped[these].bincount(minlength=3) / these.sum()
        torch.testing.assert_close(found, torch.tensor(row), atol=0.027, rtol=0)  # 3 sigma


@pytest.mark.parametrize("kind", ["symmetric", "uniform", "pair", "exact_count"])
def test_noise_does_not_depend_on_the_order(kind) -> None:
    order = torch.randperm(len(IDX))
    made = noise(0.3, kind=kind)
    assert torch.equal(made.flip(LABELS, IDX)[order], made.flip(LABELS[order], IDX[order]))


@pytest.mark.parametrize("kind", ["symmetric", "uniform", "pair"])
def test_noise_does_not_depend_on_how_many_there_are(kind) -> None:
    made = noise(0.3, kind=kind)
    assert torch.equal(made.flip(LABELS, IDX)[:100], made.flip(LABELS[:100], IDX[:100]))


def test_texts_that_share_an_idx_share_their_fate() -> None:
    twice = torch.cat([IDX, IDX])
    for kind in ("symmetric", "exact_count"):
        left, right = noise(0.3, kind=kind).flip(LABELS.repeat(2), twice).chunk(2)
        assert torch.equal(left, right)
    assert int((left != LABELS).sum()) == 3000


def test_without_noise_nothing_moves() -> None:
    for kind in ("symmetric", "uniform", "pair", "exact_count"):
        assert torch.equal(noise(0.0, kind=kind).flip(LABELS, IDX), LABELS)


def test_only_training_labels_move_and_the_report_counts_them(make) -> None:
    data = make(train_transforms=[FlipLabels(0.4, seed=2)], holdout_fraction=0.2)
    train, clean = labels_of(data), labels_of(make(holdout_fraction=0.2))
    changed = [i for i in train if train[i] != clean[i]]
    assert 0.2 * len(train) < len(changed) < 0.6 * len(train)
    assert labels_of(data, "val_dataloader").items() <= {i: i % 2 for i in range(50)}.items()
    assert labels_of(data, "test_dataloader") == {i: i % 2 for i in range(11)}
    assert data.notes == {
        "train_transforms": ["FlipLabels(kind=symmetric, rate=0.4, seed=2)"],
        "train_examples": len(train),
        "labels_changed": len(changed),
        "observed_flip_rate": len(changed) / len(train),
    }
    assert make().notes == {}


def test_a_limit_and_the_cache_leave_the_labels_and_their_count(make) -> None:
    def build(**options):
        return make(train_transforms=[FlipLabels(0.4)], **options)

    whole, limited = labels_of(build()), build(limit_examples=20)
    assert labels_of(limited).items() <= whole.items()
    again = build(limit_examples=20)  # from the cache
    again.setup()
    assert again.notes == limited.notes
    assert again.notes["train_examples"] == 20


def test_the_order_of_the_transforms_and_other_ones_do_not_disturb_it(make) -> None:
    first = make(train_transforms=[FlipLabels(0.4), Shout()])
    last = make(train_transforms=[Shout(), FlipLabels(0.4)])
    assert labels_of(first) == labels_of(last) != labels_of(make())
    assert first.notes["labels_changed"] == last.notes["labels_changed"] > 0


def test_three_classes_of_which_a_limit_shows_one_are_still_three(make, sst2_dir) -> None:
    """The classes are the task's, not those that happen to occur."""
    rows = [[sentence(i), "0"] for i in range(40)]
    write(sst2_dir / "SST-2" / "train.tsv", [["sentence", "label"], *rows])
    assert set(labels_of(make(train_transforms=[FlipLabels(0.4)])).values()) == {0, 1}


def test_a_regression_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="labels that are classes; stsb is a regression"):
        noise(0.2, task=Regression("stsb", 0.0, 5.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "random"},
            "no 'random' label noise; choose from symmetric, uniform, pair",
        ),
        ({}, "kind symmetric takes a rate and nothing else, got rate=None"),
        ({"rate": 0.1, "matrix": MATRIX}, "kind symmetric takes a rate and nothing else"),
        ({"kind": "asymmetric"}, "kind asymmetric takes a matrix and nothing else"),
        ({"kind": "asymmetric", "rate": 0.1, "matrix": MATRIX}, "takes a matrix and nothing else"),
        ({"rate": 0.5}, r"below 0\.5 for 2 classes, got 0\.5"),
        ({"kind": "asymmetric", "matrix": MATRIX}, r"2 rows of 2 numbers.*got rows of \[3, 3, 3\]"),
        ({"kind": "asymmetric", "matrix": [[1, 0], [0.5, 0.4]]}, r"row 1 .* got \[0\.5, 0\.4\]"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        noise(task=TWO, **options)


def test_without_its_task_it_says_what_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"call prepare\(task\)"):
        FlipLabels(0.1).flip(LABELS, IDX)
