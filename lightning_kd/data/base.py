"""What all benchmark data modules share: splits, limits, the token cache and the loaders."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_kd.data.batches import ResumableDataModule, ResumableLoader, ShardedBatches
from lightning_kd.data.encoding import (
    FORMAT_VERSION,
    Encoded,
    Padding,
    default_cache_dir,
    digest,
    encode,
    load_tokenizer,
    tokenize,
    tokenizer_digest,
)
from lightning_kd.data.identity import TrainingText
from lightning_kd.data.transform import Transform, training_notes
from lightning_kd.evaluation import Stage
from lightning_kd.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset


class BenchmarkDataModule(ResumableDataModule, TrainingText):
    """One task of a benchmark, tokenized once, with the splits kept apart.

    Test labels are mostly secret, so *validation* is the published dev set and there is no test
    set, unless the data folder has a labelled one. With a `holdout_fraction`, validation is that
    share of the training set, and *test* the published dev set: choose on one, report the other.

    Args:
        task: name of the task.
        tokenizer: Hugging Face name or folder of the tokenizer.
        data_dir: folder with the benchmark's published files; `None`: the Hugging Face Hub.
        batch_size: training examples per process and step.
        eval_batch_size: the same for validation, test and prediction; `None`: `batch_size`.
        max_length: tokens kept of each example.
        train_transforms: changes to the training set, in this order.
        limit_examples: at most so many examples of every split, a random choice (so labels are
            mixed) that depends on `seed` only; `None`: all.
        group_by_length: put training examples of similar length into the same batch.
        holdout_fraction: share of the training set to validate on; 0: validate on the published dev
            set. Texts that occur twice stay together, so the share is approximate.
        num_workers: loader processes; 0 is best here, because the data are in memory.
        cache_dir: of tokenized data; `None`: `lightning-kd` in `$XDG_CACHE_HOME` or `~/.cache`.
        seed: of the order of training, the holdout and the limit.
    """

    benchmark: ClassVar[str]
    tasks: ClassVar[Mapping[str, Task]]
    other_test: ClassVar[str] = ""  # how else to get a test set, for a message

    data_sha256: str
    """Hash of the published data, before holdout, limit and transforms; known after `setup`."""

    def __init__(  # noqa: PLR0913, PLR0917 (a data module is its options)
        self,
        task: str,
        tokenizer: str,
        data_dir: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        max_length: int = 128,
        train_transforms: Sequence[Transform] = (),
        limit_examples: int | None = None,
        group_by_length: bool = False,
        holdout_fraction: float = 0.0,
        num_workers: int = 0,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if task not in self.tasks:
            raise ValueError(
                f"{type(self).__name__} has no task {task!r}; choose from {', '.join(self.tasks)}"
            )
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        limit = 1 if limit_examples is None else limit_examples
        for name, value in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("max_length", max_length),
            ("limit_examples", limit),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= holdout_fraction < 1:
            raise ValueError(f"holdout_fraction must be in [0, 1), got {holdout_fraction}")
        self.task, self.tokenizer_name = task, tokenizer
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_length, self.limit_examples = max_length, limit_examples
        self.train_transforms, self.holdout_fraction = tuple(train_transforms), holdout_fraction
        self.group_by_length, self.num_workers, self.seed = group_by_length, num_workers, seed
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        for transform in self.train_transforms:
            transform.prepare(self.spec)
        self._roles: dict[str, dict[str, Encoded]] = {}
        self.notes: dict[str, Any] = {}
        """What a report says of the training set; known after `setup`."""

    @property
    def spec(self) -> Task:
        """The task: its labels, losses and metrics."""
        return self.tasks[self.task]

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer itself, with a padding token."""
        return load_tokenizer(self.tokenizer_name, self.max_length)

    @cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(self.tokenizer)

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

    def prepare_data(self) -> None:
        """Read and tokenize into the cache; Lightning calls it in one process per machine."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the tokenized splits, all of them whatever the `stage`."""
        del stage
        if self._roles:
            return
        published = self.read()
        digests = {name: digest(examples) for name, examples in published.items()}
        self.data_sha256 = _sha256(digests)
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
            test = {n.replace("validation", "test"): s for n, s in dev.items()}
            dev = {"validation": held}
        return {"train": {"train": train}, "validate": dev, "test": test, "predict": predict or dev}

    def _hold_out(self, train: "Dataset") -> "tuple[Dataset, Dataset]":
        # By content rather than by position: the order of the file does not matter, and a text
        # that occurs twice is never in both parts.
        texts = self._held_together(train)
        draws = [int(_sha256([self.seed, *text])[:13], 16) / 16**13 for text in texts]
        held = [i for i, draw in enumerate(draws) if draw < self.holdout_fraction]
        kept = [i for i, draw in enumerate(draws) if draw >= self.holdout_fraction]
        if not held or not kept:
            raise ValueError(
                f"holdout_fraction={self.holdout_fraction} leaves {len(kept)} of {len(train)} "
                f"examples for training and {len(held)} for validation; both need at least one"
            )
        return train.select(kept), train.select(held)

    def _held_together(self, train: "Dataset") -> Iterable[tuple[str, ...]]:
        """For each example the texts that decide which part it is in."""
        columns = [train[name] for name in train.column_names if name.startswith("sentence")]
        return zip(*columns, strict=True)

    def _limited(self, examples: "Dataset") -> "Dataset":
        if self.limit_examples is None or len(examples) <= self.limit_examples:
            return examples
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(examples), generator=generator)[: self.limit_examples]
        return examples.select(sorted(chosen.tolist()))

    def _encode(self, split: "Dataset", role: str) -> Encoded:
        examples = self._limited(split)
        transforms = self.train_transforms if role == "train" else ()
        key = [digest(examples), self._tokenizer_digest, *self._tokenizing, FORMAT_VERSION]
        key += [transform.fingerprint() for transform in transforms]
        path = self.cache_dir / self.benchmark / f"{_sha256(key)}.arrow"

        def make() -> "Dataset":
            return reduce(lambda changed, transform: transform(changed), transforms, examples)

        encoded = encode(make, self._tokenize, path)
        if transforms:
            self.notes = training_notes(transforms, examples, encoded)
        return encoded

    @property
    def _tokenizing(self) -> list[Any]:
        """All settings that `_tokenize` depends on."""
        return [self.max_length]

    def _tokenize(self, examples: "Dataset") -> Any:
        """The table that `encode` keeps; see `tokenize`."""
        return tokenize(examples, self.tokenizer, self.max_length)

    def _splits(self, role: str) -> dict[str, Encoded]:
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
                sampler=torch.as_tensor(split.lengths).argsort(stable=True).tolist(),
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

    def _batches(self, split: Encoded, batch_size: int, *, shuffle: bool) -> ShardedBatches:
        return ShardedBatches(
            len(split),
            batch_size,
            num_replicas=1 if self.trainer is None else self.trainer.world_size,
            rank=0 if self.trainer is None else self.trainer.global_rank,
            shuffle=shuffle,
            seed=self.seed,
            lengths=split.lengths if self.group_by_length or not shuffle else None,
        )

    def _loader_options(self) -> dict[str, Any]:
        return {
            "collate_fn": Padding(self.tokenizer),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
