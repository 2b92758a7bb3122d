"""What the conformance matrix runs on: every method, every kind of task, tiny and deterministic.

Methods are found by introspection (`lightning_kd.methods.METHODS`), so a new one is covered as soon
as `tests/tiny.py` can build it, and fails the matrix until then.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_kd import methods
from lightning_kd.checkpoint_io import AtomicCheckpointIO
from lightning_kd.data.batches import ResumableDataModule, ResumableLoader, ShardedBatches
from lightning_kd.frozen import Frozen
from lightning_kd.methods import TaskModule
from lightning_kd.tasks import CausalLM, Task
from tests import tiny

every_method = pytest.mark.parametrize("name", methods.METHODS)
every_task = pytest.mark.parametrize("kind", sorted(tiny.TASKS))

LAST_STEP = 4
"""Optimizer steps of the short runs; with three batches an epoch, step 2 is inside one."""


class TinyData(ResumableDataModule):
    """Twelve examples of unequal lengths, shuffled and sharded as benchmarks' are."""

    def __init__(self, task: Task, batch_size: int = 4, examples: int = 12) -> None:
        super().__init__()
        whole = tiny.batch(examples, task)
        self.rows = [{k: v[i] for k, v in whole.items()} for i in range(examples)]
        self.task, self.batch_size = task, batch_size

    @property
    def train_identity(self) -> dict[str, str]:
        return {"text": self.task.name}

    @property
    def train_keys(self) -> int:
        return len(self.rows)

    train_width, augments = 8, False

    def _sampler(self, *, shuffle: bool) -> ShardedBatches:
        trainer = self.trainer
        assert trainer is not None
        processes: dict[str, Any] = {
            "num_replicas": trainer.world_size,
            "rank": trainer.global_rank,
        }
        targets = None
        if isinstance(self.task, CausalLM):
            targets = [int((row["labels"][1:] != -100).sum()) for row in self.rows]
        return ShardedBatches(
            len(self.rows), self.batch_size, **processes, shuffle=shuffle, targets=targets
        )

    def _options(self, *, shuffle: bool) -> dict[str, Any]:
        return {"batch_size": None, "sampler": self._sampler(shuffle=shuffle)}

    def train_dataloader(self) -> ResumableLoader:
        return self.resumed(ResumableLoader(_Rows(self.rows), **self._options(shuffle=True)))

    def val_dataloader(self) -> list[DataLoader[Any]]:
        options = self._options(shuffle=False)
        return [DataLoader(_Rows(self.rows), **options) for _ in self.task.eval_sets]

    test_dataloader = predict_dataloader = val_dataloader


class _Rows(torch.utils.data.Dataset[Any]):
    """``rows[[i, j]]`` is a batch."""

    def __init__(self, rows: Sequence[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: list[int]) -> dict[str, Tensor]:
        picked = [self.rows[i] for i in indices]
        return {key: torch.stack([row[key] for row in picked]) for key in picked[0]}


def trainer(folder: Path | None = None, **settings: Any) -> L.Trainer:
    """A quiet trainer on one CPU process; with ``folder``, a checkpoint of every step in it."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "plugins": [AtomicCheckpointIO(), *settings.pop("plugins", [])],
    }
    callbacks = list(settings.pop("callbacks", []))
    if folder is not None:
        callbacks.append(every_step(folder))
    limits = {"max_steps": LAST_STEP, "max_epochs": -1} if "max_epochs" not in settings else {}
    settings = {**quiet, **limits, "enable_checkpointing": folder is not None, **settings}
    return L.Trainer(**settings, callbacks=callbacks)


def every_step(folder: Path) -> ModelCheckpoint:
    """Writes ``step=1.ckpt``, ``step=2.ckpt`` and so on."""
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)


def fit(
    module: TaskModule,
    batch_size: int = 4,
    ckpt_path: Path | None = None,
    folder: Path | None = None,
    **settings: Any,
) -> L.Trainer:
    """Train ``module`` on the tiny data; returns the trainer."""
    made = trainer(folder, **settings)
    with warnings.catch_warnings():
        # meant here: a run goes on in the folder it began in
        warnings.filterwarnings("ignore", "Checkpoint directory .* is not empty")
        made.fit(module, datamodule=TinyData(module.task, batch_size), ckpt_path=ckpt_path)
    return made


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers, frozen ones included."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def differing(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not bit for bit the same."""
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training may change, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def frozen_networks(module: nn.Module) -> list[Frozen]:
    """All `Frozen` wrappers that the module holds, wherever it keeps them."""
    held = [value for inner in module.modules() for value in vars(inner).values()]
    return [*(m for m in module.modules() if isinstance(m, Frozen)), *_frozen_among(held)]


def _frozen_among(values: Sequence[Any]) -> Iterator[Frozen]:
    for value in values:
        if isinstance(value, Frozen):
            yield value
        elif isinstance(value, dict):
            yield from _frozen_among([v for v in value.values() if isinstance(v, Frozen)])
        elif isinstance(value, list | tuple):
            yield from _frozen_among([v for v in value if isinstance(v, Frozen)])


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, such as a checkpoint's."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


class Watch(L.Callback):
    """Calls a function before every training batch, with the module."""

    def __init__(self, look: Callable[[TaskModule], None]) -> None:
        self.look = look

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TaskModule)
        self.look(pl_module)
