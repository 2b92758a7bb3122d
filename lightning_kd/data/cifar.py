"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), and small handwritten digits in their place."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_kd.data.base import BenchmarkDataModule, transformed
from lightning_kd.data.cifar_files import read_hub, read_local
from lightning_kd.data.image_files import LabelledImages
from lightning_kd.data.images import Augmentation, Images, channel_statistics
from lightning_kd.data.transform import Transform
from lightning_kd.tasks import Image, Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["CIFAR"]

_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR100 = (  # noqa: SIM905 (a list of a hundred lines)
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
).split()


class CIFAR(BenchmarkDataModule):
    """Images in classes: `cifar10`, `cifar100` (its 100 fine classes) and `digits`.

    Without `data_dir` CIFAR comes from the Hugging Face Hub. With it, from the python pickles as
    published (`data_dir` is `cifar-10-batches-py` or `cifar-100-python`, or holds it), or from
    two files `*train*.npz` and `*test*.npz` with `images` (uint8, n x h x w x c), `labels` and,
    if they like, `class_names`. `digits`, grey images of 8x8 pixels, is such a folder, made by
    `lightning-kd assets digits`.

    *Validation* is a holdout of the training set, and *test* the published test set, on which
    nothing is chosen (the released code of Annealing-KD selects on it). Pixels are scaled to [0, 1]
    and normalized per channel by mean and standard deviation of all published training images,
    whatever the holdout and the limit.

    Args:
        task: see `tasks`.
        data_dir: see above.
        batch_size: see `BenchmarkDataModule`.
        holdout_fraction: above 0, because there is no published validation set.
        augment: show training images cropped at random out of a black border, an eighth of their
            height wide (4 of 32 pixels, as He et al. did), and half of them (of CIFAR) mirrored.
            What an image looks like depends on seed, epoch and `idx` alone.
        augment_views: 0 makes a new look for each epoch. K makes K looks of each image, taken in
            turn, so that a teacher cache holds K answers to each.
        options: see `BenchmarkDataModule`.

    >>> {name: task.num_labels for name, task in CIFAR.tasks.items()}
    {'cifar10': 10, 'cifar100': 100, 'digits': 10}
    """

    benchmark = "cifar"
    tasks: ClassVar[Mapping[str, Task]] = {
        "cifar10": Image("cifar10", _CIFAR10),
        "cifar100": Image("cifar100", _CIFAR100),
        "digits": Image("digits", [str(digit) for digit in range(10)], num_channels=1),
    }
    train_width = 1  # an answer has one place

    def __init__(
        self,
        task: str,
        data_dir: str | None = None,
        batch_size: int = 128,
        holdout_fraction: float = 0.1,
        augment: bool = False,
        augment_views: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(task, data_dir, batch_size, holdout_fraction=holdout_fraction, **options)
        if holdout_fraction == 0:
            raise ValueError(
                f"{task} has no published validation set; give --data.holdout_fraction a share of "
                "the training set, such as 0.1"
            )
        if augment_views < 0:
            raise ValueError(f"augment_views must be at least 0, got {augment_views}")
        if augment_views and not augment:
            raise ValueError(
                f"augment_views={augment_views} has no effect without --data.augment true"
            )
        self.augment, self.augment_views = augment, augment_views
        self._mean, self._std = torch.zeros(1), torch.ones(1)
        self._shape: tuple[int, ...] = ()

    @property
    def image_task(self) -> Image:
        """The task, with its channels and classes."""
        spec = self.spec
        assert isinstance(spec, Image)  # noqa: S101 (all of `tasks` are)
        return spec

    @override
    def read(self) -> "dict[str, Dataset]":
        task, folder = self.image_task, self.data_dir
        found = read_hub(task) if folder is None else read_local(folder, task)
        shapes = {name: images.pixels.shape[1:] for name, images in found.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"{folder} has images of several sizes: {shapes}")
        self._shape = shapes["train"]
        self._mean, self._std = channel_statistics(torch.from_numpy(found["train"].pixels))
        return {name: _dataset(images) for name, images in found.items()}

    @property
    def submissions(self) -> list[str]:
        """A table of our own: CIFAR has no server that scores answers."""
        return [f"{self.task}.tsv"]

    @override
    def write_predictions(self, path: Path, idx: Tensor, answers: Tensor) -> None:
        labels = self.image_task.labels
        pairs = sorted(zip(idx.tolist(), answers.tolist(), strict=True))
        rows = [f"{index}\t{labels[answer]}" for index, answer in pairs]
        path.write_text("\n".join(["index\tprediction", *rows]) + "\n", encoding="utf-8")

    @override
    def save_processing(self, folder: Path) -> None:
        """``preprocessor_config.json`` with what transformers calls these numbers."""
        self.setup()
        settings = {
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self._mean.tolist(),
            "image_std": self._std.tolist(),
        }
        text = json.dumps(settings, indent=2) + "\n"
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")

    # What a teacher cache asks (`lightning_kd.teacher_cache.TrainingRows`)

    @cached_property
    def train_identity(self) -> dict[str, str]:
        """Hashes of the images, the normalization and the fixed views."""
        split: Images = self._splits("train")["train"]
        total = hashlib.sha256(split.pixels.numpy().tobytes())
        total.update(split.idx.numpy().tobytes())
        normalization = [self._mean.tolist(), self._std.tolist()]
        return {
            "images": total.hexdigest(),
            "normalization": hashlib.sha256(str(normalization).encode()).hexdigest(),
            "augmentation": str(split.augmentation),
        }

    @property
    def train_keys(self) -> int:
        """Rows of a teacher cache: one for each view of each index."""
        split: Images = self._splits("train")["train"]
        return (int(split.idx.max()) + 1) * max(self.augment_views, 1)

    @property
    def augments(self) -> bool:
        """Whether images look new in each epoch."""
        return self.augment and self.augment_views == 0

    # Inside

    @override
    def _encode(self, split: "Dataset", role: str) -> Images:
        images: Images = super()._encode(split, role)
        if role == "train" and self.augment:
            padding, flip = self._shape[1] // 8, self.task != "digits"
            images.augmentation = Augmentation(padding, flip, self.seed, self.augment_views)
        return images

    @override
    def _read_in(self, examples: "Dataset", transforms: Sequence[Transform]) -> Images:
        examples = transformed(examples, transforms)
        pixels = np.frombuffer(bytearray(b"".join(examples["image"])), np.uint8)
        return Images(
            torch.from_numpy(pixels.reshape(-1, *self._shape)),
            torch.tensor(examples["label"]),
            torch.tensor(examples["idx"]),
            self._mean,
            self._std,
        )

    @override
    def _held_together(self, train: "Dataset") -> Iterable[tuple[str, ...]]:
        return [(hashlib.sha256(image).hexdigest(),) for image in train["image"]]

    @property
    @override
    def _collate(self) -> Callable[[Any], dict[str, Tensor]]:
        return _as_it_is


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """`Images` gives whole batches."""
    return batch


def _dataset(images: LabelledImages) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "idx": list(range(len(images.labels))),
            "label": images.labels.tolist(),
            "image": [image.tobytes() for image in images.pixels],
        }
    )
