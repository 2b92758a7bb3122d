"""Which examples are in which batch, and a training loader that resumes inside an epoch.

The order of an epoch is a pure function of (seed, epoch, number of processes), so a resumed run
needs to remember two numbers only: the epoch and how many of its batches have been used.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

_GROUP = 50
"""Batches that are sorted by length together: more saves padding, fewer keeps more randomness."""


class Drawn(list[int]):
    """The examples of a batch, and the epoch that it is in, for what is drawn anew in each."""

    epoch = 0

    @classmethod
    def of(cls, batch: list[int], epoch: int) -> "Drawn":
        """That batch, in that epoch."""
        drawn = cls(batch)
        drawn.epoch = epoch
        return drawn


class ShardedBatches(DistributedSampler[list[int]]):
    """Lists of example numbers, one list per batch, for one of several processes.

    Use it as ``DataLoader(dataset, batch_size=None, sampler=ShardedBatches(...))``. It is a
    `DistributedSampler` so that Lightning neither wraps nor replaces it and calls `set_epoch`.

    *Training* (``shuffle=True``): the examples in random order are cut into global batches of
    ``batch_size * num_replicas``, and process ``rank`` takes every ``num_replicas``-th of each, so
    two processes at batch ``b`` see exactly the batches of one process at ``2 b``. The last global
    batch is cut to a multiple of the number of processes, so that the mean over processes is the
    mean over examples; one process drops nothing.

    *Evaluation* (``shuffle=False``): every example exactly once, sorted by length when lengths are
    given (less padding; `idx` tells which is which). All processes get the same number of batches,
    because they meet in every forward pass; sizes differ by at most one and stay within
    ``batch_size`` (except where ``batch_size=1`` does not come out even: then some have two).

    Args:
        num_examples: size of the data set.
        batch_size: examples per process and batch.
        num_replicas: number of processes.
        rank: this process, from 0.
        shuffle: training order rather than evaluation order.
        seed: of the training order.
        lengths: number of tokens of each example; in training it groups examples of similar length
            into batches (random all the same: groups are sorted inside a window of 50 batches, and
            the batches shuffled).
        targets: number of target tokens of each example, where an average is one over tokens; see
            `num_targets`.

    >>> list(ShardedBatches(5, batch_size=2))
    [[0, 1], [2, 3], [4]]
    >>> [list(ShardedBatches(5, batch_size=2, num_replicas=2, rank=r)) for r in (0, 1)]
    [[[0, 1], [3]], [[2], [4]]]
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = False,
        seed: int = 0,
        lengths: Sequence[int] | None = None,
        targets: Sequence[int] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if num_examples < num_replicas:
            raise ValueError(
                f"{num_examples} example(s) cannot be shared by {num_replicas} processes; "
                "use more examples or fewer devices"
            )
        # the parent only asks the data set for its length
        examples = cast("Any", range(num_examples))
        super().__init__(examples, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.num_examples, self.batch_size = num_examples, batch_size
        self.lengths = None if lengths is None else torch.as_tensor(lengths)
        self.targets = None if targets is None else torch.as_tensor(targets)
        self._counts: tuple[int, list[int]] | None = None
        self.start = 0  # batches that an iteration leaves out at its beginning

    def __len__(self) -> int:
        """Batches per epoch, the same on every process."""
        if self.shuffle:
            usable = self.num_examples - self.num_examples % self.num_replicas
            return math.ceil(usable / (self.batch_size * self.num_replicas))
        wanted = math.ceil(self.num_examples / (self.batch_size * self.num_replicas))
        return min(wanted, self.num_examples // self.num_replicas)  # no process without an example

    def __iter__(self) -> Iterator[list[int]]:
        # all at once: epoch and start are those of this moment
        batches = self.batches(self.epoch)[self.start :]
        return iter([Drawn.of(b, self.epoch) for b in batches] if self.shuffle else batches)

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of this process in an epoch."""
        if not self.shuffle:
            return self._evaluation_batches()
        batches = self._global_batches(epoch)
        return [batch[self.rank :: self.num_replicas].tolist() for batch in batches]

    def num_targets(self, epoch: int, first: int, last: int) -> float:
        """Mean number of target tokens that a process has in global batches ``first..last - 1``.

        Raises:
            ValueError: They have none, so that there is nothing to average over.
        """
        if self.targets is None:
            raise ValueError("the numbers of target tokens are not known; give targets")
        if self._counts is None or self._counts[0] != epoch:
            counts = [int(self.targets[batch].sum()) for batch in self._global_batches(epoch)]
            self._counts = epoch, counts
        total = sum(self._counts[1][first:last])
        if total == 0:
            raise ValueError(
                f"batches {first} to {last - 1} of epoch {epoch} have no token to predict; raise "
                "max_length or batch_size"
            )
        return total / ((last - first) * self.num_replicas)

    def _global_batches(self, epoch: int) -> list[Tensor]:
        size = self.batch_size * self.num_replicas
        usable = self.num_examples - self.num_examples % self.num_replicas
        generator = _generator(self.seed, epoch)
        order = torch.randperm(self.num_examples, generator=generator)[:usable]
        if self.lengths is None:
            return _cut(order, size)
        return _grouped(order, size, self.lengths, generator)

    def _evaluation_batches(self) -> list[list[int]]:
        order = torch.arange(self.num_examples)
        if self.lengths is not None:
            order = self.lengths.argsort(stable=True)
        parts = torch.tensor_split(order, len(self) * self.num_replicas)
        return [part.tolist() for part in parts[self.rank :: self.num_replicas]]


class ResumableLoader(DataLoader[Any]):
    """A loader over `ShardedBatches` whose position is in the checkpoint.

    Lightning saves `state_dict` with every checkpoint and hands it back when a fit is resumed; the
    resumed run then sees exactly the batches that were left of that epoch. `len` is always the
    length of a whole epoch. Arguments are those of `DataLoader`.

    Raises:
        TypeError: the sampler is another one, as when ``Trainer(overfit_batches=...)`` replaced it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.sampler, ShardedBatches):
            raise TypeError(
                f"the training loader needs a ShardedBatches sampler, got "
                f"{type(self.sampler).__name__}; instead of overfit_batches use "
                "--data.limit_examples"
            )
        self._batches_of: ShardedBatches = self.sampler
        self._epoch, self._batch = 0, 0  # position: epoch and batches used of it
        self._resume: tuple[int, int] | None = None
        self.trainer: L.Trainer | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # the parent names its own class
        # A generator: which epoch it is becomes known with the first batch, because Lightning makes
        # the iterator before it restores the epoch and calls `set_epoch`.
        sampler = self._batches_of
        if self._resume is not None:
            epoch, batch = self._resume
            if batch >= len(self):
                epoch, batch = epoch + 1, 0
                if sampler.epoch < epoch:
                    sampler.set_epoch(epoch)
            sampler.start = batch if sampler.epoch == epoch else 0
            self._resume = None
        self._epoch, self._batch = sampler.epoch, sampler.start
        iterator = super().__iter__()
        sampler.start = 0  # not in the sampler: with workers, the line above asks it twice
        for batch_of_examples in iterator:
            self._batch += 1  # before the yield: a checkpoint in this step has used this batch
            if sampler.targets is not None:
                first, last = self._window(self._batch - 1)
                count = sampler.num_targets(self._epoch, first, last)
                batch_of_examples["num_targets"] = torch.tensor(count)
            yield batch_of_examples

    def _window(self, batch: int) -> tuple[int, int]:
        """First batch of the optimizer step that ``batch`` is part of, and the one after its last.

        An epoch that the trainer cuts short ends its last step early.
        """
        if self.trainer is None:
            return batch, batch + 1
        window = self.trainer.accumulate_grad_batches
        first = batch // window * window
        return first, int(min(first + window, len(self), self.trainer.num_training_batches))

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of its batches used so far."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after ``state["batch"]`` batches of epoch ``state["epoch"]``."""
        self._resume = state["epoch"], state["batch"]
        self._epoch, self._batch = self._resume


class ResumableDataModule(L.LightningDataModule):
    """Gives a resumed run's training loader the position that the checkpoint holds.

    Lightning saves the position of the loader, but does not hand it back where it had to make the
    loader before it restored the loops: to estimate the number of steps of ``max_epochs``, say. The
    data module is restored before that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._training: ResumableLoader | None = None
        self._position: dict[str, int] | None = None

    def resumed(self, loader: ResumableLoader) -> ResumableLoader:
        """``loader`` as the training loader, at the position that was restored, if any."""
        if self._position is not None:
            loader.load_state_dict(self._position)
            self._position = None
        self._training, loader.trainer = loader, self.trainer
        return loader

    def state_dict(self) -> dict[str, Any]:
        """The training loader's position."""
        return {} if self._training is None else dict(self._training.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a position for the next training loader; a stage that only evaluates has none."""
        fits = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        self._position = state_dict or None if fits else None


def _cut(order: Tensor, size: int) -> list[Tensor]:
    return [order[k : k + size] for k in range(0, len(order), size)]


def _grouped(order: Tensor, size: int, lengths: Tensor, generator: torch.Generator) -> list[Tensor]:
    batches: list[Tensor] = []
    for window in _cut(order, size * _GROUP):
        batches += _cut(window[lengths[window].argsort(stable=True)], size)
    last = [batches.pop()] if len(batches[-1]) < size else []  # stays last, as without grouping
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[k] for k in shuffled] + last


def _generator(seed: int, epoch: int) -> torch.Generator:
    # not seed + epoch: epoch 1 of seed 0 must differ from epoch 0 of seed 1
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
