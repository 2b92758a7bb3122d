"""Images in memory: crops and flips that are a function of (seed, epoch, example), and batches."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset as TorchDataset

__all__ = ["Augmentation", "Images", "channel_statistics", "crop_and_flip"]

_DRAW_BITS = 48


@dataclass(frozen=True)
class Augmentation:
    """A random crop out of a black border, and (mostly) a random mirror image.

    What an image looks like is a function of (seed, epoch, idx): neither resuming nor the number of
    processes changes it.

    Args:
        padding: Pixels of border on each side.
        flip: Whether half of the images are mirrored, left to right.
        seed: Of the draws.
        views: Kinds of looks an image has, each in its turn (epoch mod views); 0: a new one in each
            epoch.
    """

    padding: int
    flip: bool
    seed: int
    views: int = 0

    def view(self, epoch: int) -> int:
        """Which look is taken in an epoch."""
        return epoch % self.views if self.views else epoch

    def draw(self, epoch: int, idx: int) -> tuple[int, int, bool]:
        """First row and column of the crop, 0 to ``2 * padding``, and whether it is mirrored.

        >>> Augmentation(4, flip=True, seed=0).draw(epoch=1, idx=7)
        (4, 3, True)
        """
        key = hashlib.sha256(f"{self.seed}/augment/{self.view(epoch)}/{idx}".encode()).digest()
        width = _DRAW_BITS // 8
        draws = [int.from_bytes(key[k * width : (k + 1) * width], "big") for k in range(3)]
        row, column = (draw * (2 * self.padding + 1) >> _DRAW_BITS for draw in draws[:2])
        return row, column, self.flip and bool(draws[2] >> (_DRAW_BITS - 1))

    def __call__(
        self, images: UInt8[Tensor, "b c h w"], idx: Sequence[int], epoch: int
    ) -> UInt8[Tensor, "b c h w"]:
        """The looks of images in an epoch."""
        rows, columns, flips = zip(*(self.draw(epoch, i) for i in idx), strict=True)
        places = torch.tensor(rows), torch.tensor(columns), torch.tensor(flips)
        return crop_and_flip(images, self.padding, *places)


def crop_and_flip(
    images: UInt8[Tensor, "b c h w"], padding: int, rows: Tensor, columns: Tensor, flips: Tensor
) -> UInt8[Tensor, "b c h w"]:
    """Windows of the images' size in images with a border of zeros, some mirrored.

    Args:
        images: Raw pixels.
        padding: Width of the border.
        rows: ``[b]``, of each window's first pixel; ``padding`` is the image itself.
        columns: ``[b]``.
        flips: ``[b]``, whether it is mirrored.

    >>> image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    >>> down, left = torch.tensor([2]), torch.tensor([0])
    >>> crop_and_flip(image, 1, down, left, torch.tensor([False]))[0, 0].tolist()
    [[0, 3], [0, 0]]
    >>> crop_and_flip(image, 1, down, left, torch.tensor([True]))[0, 0].tolist()
    [[3, 0], [0, 0]]
    """
    count, _, height, width = images.shape
    bordered = F.pad(images, (padding, padding, padding, padding))
    along = torch.arange(width)
    down = rows[:, None] + torch.arange(height)  # [b, h]
    across = columns[:, None] + torch.where(flips[:, None], along.flip(0), along)  # [b, w]
    picked = bordered[torch.arange(count)[:, None, None], :, down[:, :, None], across[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


class Images(TorchDataset[Any]):
    """A split in memory, as raw pixels: ``split[[i, j]]`` is a batch, ``split[i]`` one example.

    Args:
        pixels: ``[n, c, h, w]``.
        labels: ``[n]``, or None where they are secret.
        idx: ``[n]``, places in the published split.
        mean: ``[c]``, subtracted from pixels in [0, 1].
        std: ``[c]``, divided by afterwards.
        augmentation: Of training examples; indices then come from `ShardedBatches`, which say the
            epoch. Others get the images as they are, or their first view where views are counted.
    """

    def __init__(
        self,
        pixels: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"] | None,
        idx: Int64[Tensor, " n"],
        mean: Float[Tensor, " c"],
        std: Float[Tensor, " c"],
        augmentation: Augmentation | None = None,
    ) -> None:
        self.pixels, self.labels, self.idx = pixels, labels, idx
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int | Sequence[int]) -> dict[str, Tensor]:
        if isinstance(index, int):
            return {name: values[0] for name, values in self[[index]].items()}
        images, idx = self.pixels[index], self.idx[index]
        batch = {"idx": idx}
        look = self.augmentation
        if look is not None and (look.views or hasattr(index, "epoch")):
            epoch: int = getattr(index, "epoch", 0)
            images = look(images, idx.tolist(), epoch)
            if look.views:
                batch["cache_row"] = idx * look.views + look.view(epoch)
        batch["pixel_values"] = (images.float() / 255 - self.mean) / self.std
        if self.labels is not None:
            batch["labels"] = self.labels[index]
        return batch

    __getitems__ = __getitem__  # a whole batch for a `DataLoader` with a batch size, too

    def column(self, name: str) -> np.ndarray:
        """All of ``idx`` or ``labels``, ``[n]``."""
        values: Tensor = {"idx": self.idx, "labels": self.labels}[name]  # type: ignore[assignment]
        return values.numpy()


def channel_statistics(
    pixels: UInt8[Tensor, "n c h w"],
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Mean and standard deviation of each channel ``[c]``, of pixels scaled to [0, 1].

    A channel that is the same everywhere has the deviation 1: it is only shifted, to 0.

    >>> mean, std = channel_statistics(torch.tensor([[[[0, 255]]], [[[0, 255]]]]).byte())
    >>> mean.item(), std.item()
    (0.5, 0.5)
    """
    # counted per value, which takes no room: the images are not turned into floating point
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in pixels.unbind(1):
        shares = channel.flatten().bincount(minlength=256).double() / channel.numel()
        mean = (shares * values).sum()
        means.append(mean)
        deviations.append((shares * (values - mean).square()).sum().sqrt())
    std = torch.stack(deviations)
    return torch.stack(means).float(), torch.where(std > 0, std, 1.0).float()
