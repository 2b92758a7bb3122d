"""Out-of-fold answers: what teachers say of the examples that they were not trained on.

The training set is cut into folds, a function of (seed, ``idx``) alone; for each fold a teacher is
fine-tuned on the others and asked about it. A network that has seen a wrong label repeats it; one
that has not is evidence.
"""

import copy
import hashlib
import warnings
from collections.abc import Callable, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_kd.checkpoint_io import write_atomically
from lightning_kd.data.batches import ResumableLoader, ShardedBatches
from lightning_kd.fingerprints import fingerprint_of
from lightning_kd.functional.noise import relabel
from lightning_kd.methods.base import Batch, TaskModule
from lightning_kd.tasks import Task


@dataclass(frozen=True)
class CrossFit:
    """How the teachers of the folds are trained.

    Args:
        folds: Number of parts, at least 2.
        epochs: Of each teacher, at least 1.
        seed: Of the folds and the order of training.
        settings: Further arguments of `TaskModule`: learning rate, decay, warm-up, schedule.

    Raises:
        ValueError: Fewer folds or epochs.
    """

    folds: int
    epochs: int
    seed: int
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        if self.folds < 2 or self.epochs < 1:
            raise ValueError(
                f"cross-fitting needs at least 2 folds and 1 epoch, got folds={self.folds} and "
                f"fold_epochs={self.epochs}"
            )

    def fold_of(self, idx: int) -> int:
        """The part that an example belongs to, in 0..folds-1.

        >>> [CrossFit(5, 1, 0, {}).fold_of(idx) for idx in range(8)]
        [1, 0, 2, 3, 3, 0, 4, 0]
        """
        return self.draw(f"fold/{idx}") % self.folds

    def draw(self, what: str) -> int:
        """A number of 56 bits for a purpose."""
        digest = hashlib.sha256(f"{self.seed}/{what}".encode()).digest()
        return int.from_bytes(digest[:7], "big")


class OutOfFold:
    """A table of answers, looked up by ``idx``.

    Args:
        idx: ``[n]``, ascending, each once.
        labels: ``[n]``, those that were seen.
        logits: ``[n, c]``.
    """

    def __init__(self, idx: Tensor, labels: Tensor, logits: Tensor) -> None:
        self.idx, self.labels, self.logits = idx, labels, logits
        parts = b"".join(part.numpy().tobytes() for part in (idx, labels, logits))
        self.sha256 = hashlib.sha256(parts).hexdigest()

    def find(self, batch: Batch) -> Tensor:
        """The answers to a batch ``[b, c]``, on its device.

        Raises:
            ValueError: An example is not in the table.
        """
        wanted = batch["idx"].cpu()
        rows = torch.searchsorted(self.idx, wanted).clamp(max=len(self.idx) - 1)
        if not torch.equal(self.idx[rows], wanted):
            lost = wanted[self.idx[rows] != wanted][0]
            raise ValueError(
                f"no teacher was asked about example {int(lost)}; the data have changed"
            )
        return self.logits[rows].to(batch["idx"].device)

    def notes(self, refine: str, threshold: float) -> dict[str, str | float]:
        """For the report: what became of the labels, and how many the teachers disagree with.

        >>> logits = torch.tensor([[0.2, 0.8], [0.6, 0.4]]).log()
        >>> table = OutOfFold(torch.arange(2), torch.tensor([0, 1]), logits)
        >>> table.notes("hard", 0.7)["labels_replaced"]
        0.5
        >>> table.notes("filter", 0.7)["estimated_noise_rate"]
        1.0
        """
        probabilities = self.logits.softmax(-1)
        replaced = relabel(self.labels, probabilities, threshold) != self.labels
        disagree = float((probabilities.argmax(-1) != self.labels).double().mean())
        found: dict[str, str | float] = {"refinement": refine, "estimated_noise_rate": disagree}
        if refine == "hard":
            found["labels_replaced"] = float(replaced.double().mean())
        return found


class _FoldTeacher(TaskModule):
    """A teacher in training."""

    @override
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        return {"hard": self.task.hard_loss(self.predict(batch), batch).mean()}


class _Members(ShardedBatches):
    """Batches of some of the examples."""

    def __init__(self, members: Tensor, batch_size: int, *, shuffle: bool, seed: int) -> None:
        super().__init__(len(members), batch_size, shuffle=shuffle, seed=seed)
        self.members = members

    @override
    def batches(self, epoch: int) -> list[list[int]]:
        return [self.members[batch].tolist() for batch in super().batches(epoch)]


def cross_fit(
    plan: CrossFit,
    task: Task,
    make_teacher: Callable[[], nn.Module],
    trainer: L.Trainer,
    folder: Path,
) -> OutOfFold:
    """Train a teacher for each fold and collect what they say of the examples they did not see.

    Processes share the folds. A fold that is done is in ``folder``, in a file named by everything
    that its answers depend on, so that a run that was cut off goes on, and others can use it.

    Args:
        plan: Folds and training.
        task: Gives the loss.
        make_teacher: Makes the teacher as it is before its training.
        trainer: Of the run, which is training; its data, device and precision are used.
        folder: Gets ``<hash>_<fold>.npz``.

    Raises:
        TypeError: The training loader is not one of `lightning_kd.data`.
        ValueError: Examples share an ``idx``, or a fold holds all of them.
    """
    loader: Any = trainer.train_dataloader
    if not isinstance(loader, ResumableLoader):
        raise TypeError(
            "label refinement needs a data module of lightning_kd.data, whose examples have an idx "
            f"and can be picked; got a {type(loader).__name__}"
        )
    everything = torch.arange(len(cast("Sized", loader.dataset)))
    columns, digests = [], []
    for batch in _loader(loader, everything):  # not all at once: their tokens may fill the memory
        columns.append((batch["idx"], batch["labels"]))
        digests.append(_digest(batch))
    idx, labels = map(torch.cat, zip(*columns, strict=True))
    if (distinct := len(set(idx.tolist()))) < len(idx):
        raise ValueError(
            f"{len(idx)} training examples share {distinct} idx, so that they have no answer of "
            "their own; refine labels before the set is augmented"
        )
    folds = torch.tensor([plan.fold_of(i) for i in idx.tolist()])
    used = sorted(set(folds.tolist()))
    if len(used) < 2:
        raise ValueError(f"all {len(idx)} examples are in one of {plan.folds} folds; use more data")
    teacher = make_teacher()
    parts = [repr(plan), task.name, str(_batch_size(loader)), str(trainer.precision)]
    parts += [f"{trainer.accumulate_grad_batches}/{trainer.gradient_clip_val}"]
    parts += [torch.__version__, fingerprint_of(teacher), *digests]
    key = hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]
    files = {fold: folder / f"{key}_{fold}.npz" for fold in used}
    for fold, path in files.items():
        if fold % trainer.world_size != trainer.global_rank or path.exists():
            continue
        held, seen = (folds == fold).nonzero().flatten(), (folds != fold).nonzero().flatten()
        if trainer.progress_bar_callback is not None:
            print(  # noqa: T201 - a training without a bar of its own
                f"fold {fold + 1} of {plan.folds}: a teacher learns {len(seen):,} examples and is "
                f"asked about {len(held):,}"
            )
        with torch.random.fork_rng():
            torch.manual_seed(plan.draw(f"teacher/{fold}"))
            module = _FoldTeacher(copy.deepcopy(teacher), task, **plan.settings)
            _train(plan, module, _loader(loader, seen, seed=plan.draw(f"order/{fold}")), trainer)
        found = _ask(module, _loader(loader, held), trainer)
        write_atomically(partial(_save, found), path)
    trainer.strategy.barrier()  # every process reads what the others have written
    asked, logits = map(torch.cat, zip(*map(_load, files.values()), strict=True))
    order = idx.argsort()
    return OutOfFold(idx[order], labels[order], logits[asked.argsort()])


def _loader(like: ResumableLoader, members: Tensor, seed: int | None = None) -> DataLoader[Any]:
    """Batches of members: in a random order with a seed, in theirs without."""
    batches = _Members(members, _batch_size(like), shuffle=seed is not None, seed=seed or 0)
    return DataLoader(like.dataset, batch_size=None, sampler=batches, collate_fn=like.collate_fn)


def _batch_size(loader: ResumableLoader) -> int:
    return cast("ShardedBatches", loader.sampler).batch_size


def _train(plan: CrossFit, module: TaskModule, loader: DataLoader[Any], outer: L.Trainer) -> None:
    module.student.requires_grad_(requires_grad=True)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    device = outer.strategy.root_device
    trainer = L.Trainer(
        accelerator=device.type,
        devices=1 if device.type == "cpu" else [device.index],
        precision=outer.precision,
        max_epochs=plan.epochs,
        accumulate_grad_batches=outer.accumulate_grad_batches,
        gradient_clip_val=outer.gradient_clip_val,
        limit_val_batches=0,
        log_every_n_steps=0,
        default_root_dir=outer.default_root_dir,
        **quiet,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_")
        trainer.fit(module, loader)


@torch.no_grad()
def _ask(module: TaskModule, loader: DataLoader[Any], trainer: L.Trainer) -> dict[str, np.ndarray]:
    module.to(trainer.strategy.root_device).eval()
    idx, logits = [], []
    for cpu_batch in loader:
        batch = trainer.strategy.batch_to_device(cpu_batch)
        with trainer.precision_plugin.forward_context():
            logits.append(module.predict(batch).logits.float().cpu())
        idx.append(cpu_batch["idx"])
    return {"idx": torch.cat(idx).numpy(), "logits": torch.cat(logits).numpy()}


def _save(arrays: dict[str, np.ndarray], file: IO[bytes]) -> None:
    np.savez(file, allow_pickle=False, **arrays)


def _load(path: Path) -> tuple[Tensor, Tensor]:
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["idx"]), torch.from_numpy(arrays["logits"])


def _digest(batch: Batch) -> str:
    total = hashlib.sha256()
    for name, value in sorted(batch.items()):
        total.update(f"{name} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return total.hexdigest()


__all__ = ["CrossFit", "OutOfFold", "cross_fit"]
