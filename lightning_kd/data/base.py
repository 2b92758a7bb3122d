"""What all benchmark data modules share: splits, holdout, limit, transforms and the loaders."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_kd.data.batches import ResumableDataModule, ResumableLoader, ShardedBatches
from lightning_kd.data.encoding import digest
from lightning_kd.data.transform import Examples, Transform, training_notes
from lightning_kd.evaluation import Stage
from lightning_kd.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset


class BenchmarkDataModule(ResumableDataModule):
    """One task of a benchmark, with the splits kept apart.

    Test labels are mostly secret, so *validation* is the published dev set and there is no test
    set, unless the data folder has a labelled one. With a `holdout_fraction`, validation is that
    share of the training set, and *test* the published dev set: choose on one, report the other.

    Args:
        task: name of the task.
        data_dir: folder with the benchmark's published files; `None`: the Hugging Face Hub.
        batch_size: training examples per process and step.
        eval_batch_size: the same for validation, test and prediction; `None`: `batch_size`.
        train_transforms: changes to the training set, in this order.
        limit_examples: at most so many examples of every split, a random choice (so labels are
            mixed) that depends on `seed` only; `None`: all.
        limit_eval_examples: the same of validation and test, instead.
        holdout_fraction: share of the training set to validate on; 0: validate on the published dev
            set. Examples that occur twice stay together, so the share is approximate.
        num_workers: loader processes; 0 is best here, because the data are in memory.
        seed: of the order of training, the holdout and the limit.
    """

    benchmark: ClassVar[str]
    tasks: ClassVar[Mapping[str, Task]]
    group_by_length = False
    other_test: ClassVar[str] = ""  # how else to get a test set, for a message

    data_sha256: str
    """Hash of the published data, before holdout, limit and transforms; known after `setup`."""

    def __init__(  # noqa: PLR0913, PLR0917 (a data module is its options)
        self,
        task: str,
        data_dir: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        train_transforms: Sequence[Transform] = (),
        limit_examples: int | None = None,
        limit_eval_examples: int | None = None,
        holdout_fraction: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if task not in self.tasks:
            raise ValueError(
                f"{type(self).__name__} has no task {task!r}; choose from {', '.join(self.tasks)}"
            )
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        for name, value in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("limit_examples", limit_examples),
            ("limit_eval_examples", limit_eval_examples),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= holdout_fraction < 1:
            raise ValueError(f"holdout_fraction must be in [0, 1), got {holdout_fraction}")
        self.task = task
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.limit_examples, self.limit_eval_examples = limit_examples, limit_eval_examples
        self.holdout_fraction = holdout_fraction
        self.train_transforms = tuple(train_transforms)
        self.num_workers, self.seed = num_workers, seed
        for transform in self.train_transforms:
            transform.prepare(self.spec)
        self._roles: dict[str, dict[str, Any]] = {}
        self.notes: dict[str, Any] = {}
        """What a report says of the training set; known after `setup`."""

    @property
    def spec(self) -> Task:
        """The task: its labels, losses and metrics."""
        return self.tasks[self.task]

    @abstractmethod
    def read(self) -> "dict[str, Dataset]":
        """The published `train`, `validation` and (if any) `test`, plus `_<eval set>` of these.

        Columns: those that a `Transform` sees; `idx` is the position in the published split, and
        `label` is missing where it is secret.
        """

    @property
    @abstractmethod
    def submissions(self) -> list[str]:
        """Names of the files that hold the answers, one per loader of the predict stage."""

    @abstractmethod
    def write_predictions(self, path: Path, idx: Tensor, answers: Tensor) -> None:
        """Write the answers `[n]` (class numbers or scores) to examples `idx` `[n]`."""

    @abstractmethod
    def save_processing(self, folder: Path) -> None:
        """Write what turns raw inputs into the model's, to lie beside an exported model."""

    @abstractmethod
    def _read_in(self, examples: "Dataset", transforms: Sequence[Transform]) -> Examples:
        """A split as it is trained or evaluated on: transformed, in arrays."""

    @abstractmethod
    def _held_together(self, train: "Dataset") -> Iterable[tuple[str, ...]]:
        """For each example the texts (or a hash) that decide which part of a holdout it is in."""

    @property
    @abstractmethod
    def _collate(self) -> Callable[[Any], dict[str, Tensor]]:
        """Makes a batch of what a split gives for several indices."""

    def _lengths(self, split: Any) -> Sequence[int] | None:
        """Length of each example of a split, to save padding; None where all have the same."""
        del split
        return None

    def _targets(self, split: Any) -> Sequence[int] | None:
        """Number of target tokens of each example; None where an average is one over examples."""
        del split
        return None

    def prepare_data(self) -> None:
        """Read (and tokenize into the cache); Lightning calls it in one process per machine."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the splits, all of them whatever the `stage`."""
        del stage
        if self._roles:
            return
        published = self.read()
        digests = {name: digest(examples) for name, examples in published.items()}
        self.data_sha256 = sha256_of(digests)
        self._roles = {
            role: {name: self._encode(split, role) for name, split in splits.items()}
            for role, splits in self._assign(published).items()
        }

    def _assign(self, published: "dict[str, Dataset]") -> "dict[str, dict[str, Dataset]]":
        """Which published split is used for what."""
        train = published["train"]
        dev = {n: s for n, s in published.items() if n.startswith("validation")}
        test = {n: s for n, s in published.items() if n.startswith("test")}
        predict = test or dev
        test = {n: s for n, s in test.items() if "label" in s.column_names}
        if self.holdout_fraction > 0:
            train, held = self._hold_out(train)
            test = {n.replace("validation", "test"): s for n, s in dev.items()} or test
            dev = {"validation": held}
        return {"train": {"train": train}, "validate": dev, "test": test, "predict": predict or dev}

    def _hold_out(self, train: "Dataset") -> "tuple[Dataset, Dataset]":
        # By content rather than by position: the order of the file does not matter, and a text
        # that occurs twice is never in both parts.
        texts = self._held_together(train)
        draws = [int(sha256_of([self.seed, *text])[:13], 16) / 16**13 for text in texts]
        held = [i for i, draw in enumerate(draws) if draw < self.holdout_fraction]
        kept = [i for i, draw in enumerate(draws) if draw >= self.holdout_fraction]
        if not held or not kept:
            raise ValueError(
                f"holdout_fraction={self.holdout_fraction} leaves {len(kept)} of {len(train)} "
                f"examples for training and {len(held)} for validation; both need at least one"
            )
        return train.select(kept), train.select(held)

    def _limited(self, examples: "Dataset", role: str) -> "Dataset":
        limit = self.limit_examples
        if role in ("validate", "test") and self.limit_eval_examples is not None:
            limit = self.limit_eval_examples
        if limit is None or len(examples) <= limit:
            return examples
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(examples), generator=generator)[:limit]
        return examples.select(sorted(chosen.tolist()))

    def _encode(self, split: "Dataset", role: str) -> Any:
        examples = self._limited(split, role)
        transforms = self.train_transforms if role == "train" else ()
        encoded = self._read_in(examples, transforms)
        if transforms:
            self.notes = training_notes(transforms, examples, encoded)
        return encoded

    def _splits(self, role: str) -> dict[str, Any]:
        self.setup()
        return self._roles[role]

    @property
    def has_test(self) -> bool:
        """Whether there is a labelled split that nothing was chosen on."""
        return bool(self._splits("test"))

    def eval_splits(self, stage: Stage) -> list[str]:
        """Names of a stage's loaders, as in reports: `["validation", "validation_mismatched"]`."""
        return list(self._splits(stage))

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; the position is in the checkpoint."""
        split = self._splits("train")["train"]
        batches = self._batches(split, self.batch_size, shuffle=True)
        options = self._loader_options()
        return self.resumed(ResumableLoader(split, batch_size=None, sampler=batches, **options))

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per name in `eval_splits("validate")`."""
        return self._eval_loaders("validate")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per name in `eval_splits("test")`."""
        if not self.has_test:
            raise ValueError(
                f"the test labels of {self.benchmark}/{self.task} are not public; run `validate` "
                "or `predict`, or set --data.holdout_fraction (the published dev set is then the "
                f"test set){self.other_test}"
            )
        return self._eval_loaders("test")

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """The published test set, or the dev set where there is none; `idx` restores the order."""
        # Plain loaders: Lightning builds its own in their place, to keep track of the examples.
        return [
            DataLoader(
                split,
                batch_size=self.eval_batch_size,
                sampler=self._shortest_first(split),
                **self._loader_options(),
            )
            for split in self._splits("predict").values()
        ]

    def _eval_loaders(self, stage: Stage) -> list[DataLoader[Any]]:
        return [
            DataLoader(
                split,
                batch_size=None,
                sampler=self._batches(split, self.eval_batch_size, shuffle=False),
                **self._loader_options(),
            )
            for split in self._splits(stage).values()
        ]

    def _shortest_first(self, split: Any) -> list[int]:
        lengths = self._lengths(split)
        order = range(len(split))
        return list(order) if lengths is None else sorted(order, key=lengths.__getitem__)

    def _batches(self, split: Any, batch_size: int, *, shuffle: bool) -> ShardedBatches:
        return ShardedBatches(
            len(split),
            batch_size,
            num_replicas=1 if self.trainer is None else self.trainer.world_size,
            rank=0 if self.trainer is None else self.trainer.global_rank,
            shuffle=shuffle,
            seed=self.seed,
            lengths=self._lengths(split) if self.group_by_length or not shuffle else None,
            targets=self._targets(split) if shuffle else None,
        )

    def _loader_options(self) -> dict[str, Any]:
        return {
            "collate_fn": self._collate,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


def sha256_of(value: Any) -> str:
    """Of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def transformed(examples: "Dataset", transforms: Sequence[Transform]) -> "Dataset":
    """The examples after all transforms, in their order."""
    return reduce(lambda changed, transform: transform(changed), transforms, examples)
