"""Checkpoints of a training in their order, for a student that follows them."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.trajectory import TeacherTrajectory

__all__ = ["TrajectoryRecorder"]


class TrajectoryRecorder(L.Callback):
    """Leaves a `lightning_kd.trajectory.TeacherTrajectory` of the network that trains.

    Works on any LightningModule. Nothing is pruned, and the state at the very end is always
    recorded; the one before the first step is not, for a random head teaches nothing. A resumed
    training goes on with the trajectory where its checkpoint was written.

    Args:
        folder: To record in: empty, or with the trajectory of the run that is resumed.
        every_n_steps: Optimizer steps between two checkpoints; None records each epoch's end.
        network: Attribute of the module that holds the network.
        monitor: The logged value to note; None is the module's own ``monitor``, where it has one.
            It is noted where validation comes at the same step, as it does at the end of an epoch.
        labels: Names of the classes in the order of the logits; None takes them from the module's
            ``task`` or from the network's transformers config, where they are.

    Raises:
        ValueError: ``every_n_steps`` below 1; or at the start of a training: the folder holds
            another run's trajectory, or lacks what the resumed run had recorded.
        TypeError: The module has no such network.
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_steps: int | None = None,
        network: str = "student",
        monitor: str | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.folder, self.every_n_steps = Path(folder).expanduser(), every_n_steps
        self.network, self.monitor, self.labels = network, monitor, labels
        self._trajectory: TeacherTrajectory | None = None
        self._run: str | None = None
        self._recorded = 0  # when the checkpoint was written that the training goes on from
        self._loss, self._batches = torch.zeros((), dtype=torch.float64), 0
        self._validated_at = -1

    # What a checkpoint holds: enough to know whose trajectory this is, and the loss so far.

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(network=self.network, every_n_steps=self.every_n_steps)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "run": self._run,
            "recorded": 0 if self._trajectory is None else len(self._trajectory.checkpoints),
            "loss": self._loss.item(),
            "batches": self._batches,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._run, self._recorded = state_dict["run"], state_dict["recorded"]
        self._loss = torch.tensor(state_dict["loss"], dtype=torch.float64)
        self._batches = state_dict["batches"]

    # Hooks

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._network_of(pl_module)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        index = self.folder / "index.json"
        found = TeacherTrajectory.read(self.folder) if index.exists() else None
        if self._run is None:
            self._begin(trainer, pl_module, found)
        else:
            self._go_on(trainer, found)

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # Lightning has divided it by the number of batches that make a step
            whole = loss.detach() * trainer.accumulate_grad_batches
            self._loss = self._loss.to(loss.device) + whole
            self._batches += 1
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            self._record(trainer, pl_module, trainer.current_epoch)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or self._trajectory is None:
            return
        self._validated_at = trainer.global_step
        *before, last = self._trajectory.checkpoints or (None,)
        if last is not None and last.step == trainer.global_step and last.metric is None:
            noted = replace(last, metric=self._metric(trainer, pl_module))
            self._trajectory = replace(self._trajectory, checkpoints=(*before, noted))
            if trainer.is_global_zero:
                self._trajectory.write()

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Before Lightning's checkpoints, which come last: a run that is killed in between records
        # this one again, and none is lost.
        if self.every_n_steps is None:
            self._record(trainer, pl_module, trainer.current_epoch)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._record(trainer, pl_module, max(trainer.current_epoch - 1, 0))

    # Inside

    def _begin(
        self, trainer: L.Trainer, module: L.LightningModule, found: TeacherTrajectory | None
    ) -> None:
        if found is not None and found.checkpoints:
            raise ValueError(
                f"{self.folder} holds the trajectory of another run, {len(found.checkpoints)} "
                "checkpoint(s); give an empty folder, or resume that run"
            )
        network = self._network_of(module)
        self._run = str(trainer.strategy.broadcast(uuid.uuid4().hex[:16]))
        self._trajectory = TeacherTrajectory(
            self.folder, self._run, self._labels_of(module, network), self._monitor_of(module)
        )
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            tokenizer: Any = getattr(vars(trainer).get("datamodule"), "tokenizer", None)
            config: Any = getattr(network, "config", None)
            for part in (config, tokenizer):
                if hasattr(part, "save_pretrained"):
                    part.save_pretrained(self.folder)
            self._trajectory.write()

    def _go_on(self, trainer: L.Trainer, found: TeacherTrajectory | None) -> None:
        kept = () if found is None else found.checkpoints
        kept = tuple(c for c in kept if c.step <= trainer.global_step)
        if found is None or found.run != self._run or len(kept) < self._recorded:
            raise ValueError(
                f"{self.folder} lacks the {self._recorded} checkpoint(s) that this run recorded "
                "before it was resumed; put them back, or start the run anew"
            )
        # What the run recorded after its last checkpoint comes again.
        self._trajectory = replace(found, checkpoints=kept)
        if trainer.is_global_zero:
            self._trajectory.write()

    def _record(self, trainer: L.Trainer, module: L.LightningModule, epoch: int) -> None:
        trajectory, step = self._trajectory, trainer.global_step
        if trajectory is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if step == 0 or (trajectory.checkpoints and trajectory.checkpoints[-1].step >= step):
            return  # inside an accumulated step, or just recorded
        weights = self._weights_of(trainer, module)  # some strategies ask all processes for them
        if trainer.is_global_zero:
            trajectory = trajectory.recorded(
                weights,
                epoch=epoch,
                step=step,
                metric=self._metric(trainer, module) if self._validated_at == step else None,
                train_loss=self._loss.item() / self._batches if self._batches else None,
            )
        self._trajectory = trainer.strategy.broadcast(trajectory)
        self._loss, self._batches = torch.zeros_like(self._loss), 0

    def _weights_of(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        """All weights and buffers of the network, whole."""
        whole, prefix = trainer.strategy.lightning_module_state_dict(), f"{self.network}."
        own: dict[str, Any] = self._network_of(module).state_dict()
        return {name: whole.get(prefix + name, value) for name, value in own.items()}

    def _metric(self, trainer: L.Trainer, module: L.LightningModule) -> float | None:
        value = trainer.callback_metrics.get(self._monitor_of(module) or "")
        return None if value is None else float(value)

    def _monitor_of(self, module: L.LightningModule) -> str | None:
        return self.monitor or getattr(module, "monitor", None)

    def _labels_of(self, module: L.LightningModule, network: nn.Module) -> tuple[str, ...] | None:
        if self.labels is not None:
            return tuple(self.labels)
        task: Any = getattr(module, "task", None)
        names = getattr(task, "labels", None)
        if names is None and task is None:
            names = getattr(getattr(network, "config", None), "id2label", {}).values()
        return tuple(map(str, names)) if names else None

    def _network_of(self, module: L.LightningModule) -> nn.Module:
        network = getattr(module, self.network, None)
        if not isinstance(network, nn.Module):
            names = ", ".join(name for name, _ in module.named_children())
            raise TypeError(
                f"TrajectoryRecorder: {type(module).__name__} has no network named "
                f"{self.network!r}; its networks: {names or 'none'}"
            )
        return network
