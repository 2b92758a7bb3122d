"""Crops, flips and statistics by hand; looks that depend on seed, epoch and example alone."""

from collections import Counter

import numpy as np
import pytest
import torch

from lightning_kd.data.batches import Drawn, ShardedBatches
from lightning_kd.data.images import Augmentation, Images, channel_statistics, crop_and_flip

PIXELS = torch.randint(1, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.1, 0.2, 0.4])


def split(augmentation: Augmentation | None = None) -> Images:
    labels, idx = torch.arange(6) % 3, torch.tensor([7, 3, 11, 4, 0, 9])
    return Images(PIXELS, labels, idx, MEAN, STD, augmentation)


def drawn(batch: list[int], epoch: int) -> Drawn:
    return Drawn.of(batch, epoch)


@pytest.mark.parametrize("row", range(5))
@pytest.mark.parametrize("flip", [False, True])
def test_a_window_is_the_shifted_image_with_zeros(row, flip) -> None:
    """Against slicing with numpy, one image after the other."""
    rows, columns = torch.full((6,), row), torch.tensor([0, 1, 2, 3, 4, 2])
    found = crop_and_flip(PIXELS, 2, rows, columns, torch.full((6,), flip)).numpy()
    bordered = np.pad(PIXELS.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for image, whole, column in zip(found, bordered, columns.tolist(), strict=True):
        window = whole[:, row : row + 8, column : column + 8]
        assert np.array_equal(image, window[:, :, ::-1] if flip else window)


def test_the_middle_is_the_image_itself() -> None:
    middle = torch.full((6,), 4)
    assert torch.equal(crop_and_flip(PIXELS, 4, middle, middle, torch.zeros(6).bool()), PIXELS)


def test_all_places_and_mirrors_are_about_equally_frequent() -> None:
    augmentation = Augmentation(4, flip=True, seed=3)
    draws = [augmentation.draw(epoch, idx) for epoch in range(20) for idx in range(200)]
    for k in range(2):
        counts = Counter(draw[k] for draw in draws)
        assert sorted(counts) == list(range(9))
        # 4,000/9 each; five standard deviations
        assert max(abs(count - 4000 / 9) for count in counts.values()) < 5 * 19.9
    assert abs(sum(draw[2] for draw in draws) - 2000) < 5 * 31.7
    rows, columns = (np.array([draw[k] for draw in draws]) for k in range(2))
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.08
    assert not any(Augmentation(1, flip=False, seed=3).draw(0, idx)[2] for idx in range(100))


def test_a_look_depends_on_seed_epoch_and_idx_and_on_nothing_else() -> None:
    augmentation = Augmentation(4, flip=True, seed=0)
    data, again = split(augmentation), split(augmentation)
    whole = data[drawn([0, 1, 2, 3], 5)]["pixel_values"]
    parts = [again[drawn([k], 5)]["pixel_values"] for k in (3, 1, 2, 0)]
    assert torch.equal(torch.cat([parts[k] for k in (3, 1, 2, 0)]), whole)
    for other in (
        data[drawn([0, 1, 2, 3], 6)],
        split(Augmentation(4, flip=True, seed=1))[drawn([0, 1, 2, 3], 5)],
    ):
        assert not torch.equal(other["pixel_values"], whole)


def test_views_come_in_turn_and_number_the_rows_of_a_cache() -> None:
    data = split(Augmentation(4, flip=True, seed=0, views=3))
    looks = [data[drawn([0, 1], epoch)] for epoch in range(6)]
    assert [look["cache_row"].tolist() for look in looks[:4]] == [
        [21, 9], [22, 10], [23, 11], [21, 9],
    ]  # fmt: skip
    for epoch in range(3):
        first, again = looks[epoch]["pixel_values"], looks[epoch + 3]["pixel_values"]
        assert torch.equal(first, again)
    assert not torch.equal(looks[0]["pixel_values"], looks[1]["pixel_values"])
    # whoever asks without an epoch gets the first view, under its row
    plain = data[[0, 1]]
    assert torch.equal(plain["pixel_values"], looks[0]["pixel_values"])
    assert plain["cache_row"].tolist() == [21, 9]


def test_without_an_epoch_or_augmentation_images_are_as_they_are() -> None:
    expected = (PIXELS.float() / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    random = split(Augmentation(4, flip=True, seed=0))
    for batch in (split()[drawn([1, 2], 3)], random[[1, 2]]):
        assert torch.allclose(batch["pixel_values"], expected[1:3])
        assert batch["labels"].tolist() == [1, 2]
        assert batch["idx"].tolist() == [3, 11]
        assert "cache_row" not in batch
    assert torch.allclose(split()[4]["pixel_values"], expected[4])


def test_training_batches_know_their_epoch_also_in_a_worker() -> None:
    batches = ShardedBatches(6, 2, shuffle=True)
    batches.set_epoch(4)
    data = split(Augmentation(4, flip=True, seed=0))
    here = [data[batch]["pixel_values"] for batch in batches]
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, sampler=batches, num_workers=1, persistent_workers=True
    )
    assert all(map(torch.equal, [b["pixel_values"] for b in loader], here))
    batches.set_epoch(5)  # the worker of epoch 4 is still the same process
    there = [b["pixel_values"] for b in loader]
    assert all(map(torch.equal, there, [data[batch]["pixel_values"] for batch in batches]))
    assert not any(map(torch.equal, there, here))
    assert not hasattr(next(iter(ShardedBatches(6, 2))), "epoch")  # evaluation has none


def test_statistics_are_those_of_numpy() -> None:
    scaled = PIXELS.numpy().astype(np.float64) / 255
    mean, std = channel_statistics(PIXELS)
    assert mean.tolist() == pytest.approx(scaled.mean((0, 2, 3)))
    assert std.tolist() == pytest.approx(scaled.std((0, 2, 3)))


def test_a_channel_that_is_the_same_everywhere_is_shifted_to_zero() -> None:
    mean, std = channel_statistics(torch.full((2, 1, 2, 2), 51, dtype=torch.uint8))
    assert mean.tolist() == pytest.approx([0.2])
    assert std.tolist() == [1.0]
