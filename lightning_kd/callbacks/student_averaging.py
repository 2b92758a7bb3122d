"""Stochastic weight averaging of a student: the mean of its weights along the training.

Lu, Kobyzev, Rezagholizadeh, Rashid, Ghodsi and Langlais, "Improving Generalization of Pre-trained
Language Models via Stochastic Weight Averaging", Findings of EMNLP 2022, arXiv 2212.05956, after
Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018,
arXiv 1803.05407. For language models: per step instead of per epoch, from earlier in the training
on, at a constant learning rate. The paper's settings were not available to us; defaults are ours.
"""

import warnings
from typing import Any, Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_kd.averaging import WeightMean, Weights
from lightning_kd.callbacks.averaging_data import refresh_statistics
from lightning_kd.callbacks.averaging_plan import (
    network_of,
    optimizer_of,
    planned_length,
    require_finite,
    require_saved,
    require_whole_weights,
    was_skipped,
)
from lightning_kd.callbacks.averaging_rate import AveragingRate, LRMode
from lightning_kd.functional import averaging_start, is_snapshot

__all__ = ["StudentAveraging"]

KEY = "student_averaging"
"""Where a checkpoint holds, by target, the weights that are not in its ``state_dict``."""


class StudentAveraging(L.Callback):
    r"""Averages a network's trainable weights over updates; the average is what one gets.

    With :math:`s_0` updates before averaging begins and :math:`w_t` the weights after update t of
    this network (steps of its optimizer: not of another one, not micro-batches, not steps that a
    gradient scaler skipped), the mean is over the t > :math:`s_0` for which ``every`` divides
    t - :math:`s_0`. From the first snapshot on

    - validation inside the training sees the average, and so do `ModelCheckpoint` and
      `EarlyStopping`: expect a jump of the metric where averaging begins, and give early stopping
      the patience for it;
    - a checkpoint's ``state_dict`` is the average: `load_from_checkpoint`, ``validate(ckpt_path)``
      and exports use it. The raw weights lie beside it, and ``fit(ckpt_path)`` goes on with those;
    - after the training the average is in the module.

    It works with any LightningModule. Frozen weights, a `Frozen` teacher, other networks of the
    module (a generator) and their optimizers are left alone; of several optimizers that share the
    network, the one with most of its weights counts. Each phase of a training in phases has an
    average of its own, and the next phase starts from it, at its full learning rate. Weights that
    become trainable only after the first snapshot are not averaged.

    Of LoRA's factors the mean is of A and of B, and mean(B) mean(A) is not mean(BA): with (1, 1)
    and (3, 3) it is 4 and not 5. It keeps the adapter an adapter, and every size of a nested one
    (DyLoRA) the average of that size's own factors; a component that was rarely drawn moved less.

    BatchNorm layers measure their statistics anew with the average's weights, in one pass over the
    training data at each validation and at the end; without such layers nothing is run.

    Args:
        target: Attribute of the module that holds the network, dotted if it lies deeper; empty: the
            module itself.
        start_fraction: Share of the training after which averaging begins,
            :math:`s_0 = \lfloor f T \rfloor`; 0 averages from the first update, 1 never.
        start_after: :math:`s_0` itself, in ``unit``, instead of a fraction.
        every: Updates (epochs) from one snapshot to the next.
        unit: ``step``: an update; ``epoch``: the end of an epoch.
        lr_mode: Learning rate while averaging: see `AveragingRate`. ``none`` leaves a schedule that
            decays to 0 alone, and then late weights hardly differ from each other.
        averaging_lr: For ``value``, ``cyclic`` and ``izmailov``.
        lowest_lr: For ``cyclic``, whose period is ``every``.
        weights: Which of the two networks is evaluated, is a checkpoint's ``state_dict`` and
            remains in the end; the other one lies beside it in every checkpoint. To see the other
            one of a checkpoint, validate it with this callback and the other word.
        merge: How low-rank adapters are averaged; there is ``factors`` only.

    Raises:
        ValueError: A value outside of its range; and, before anything is trained, a target that is
            not there or has no trainable weight, a strategy that shards weights, a length of the
            training that nobody can know, or a `ModelCheckpoint` that saves weights only.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a user sets on the command line
        self,
        target: str | None = "student",
        start_fraction: float = 0.5,
        start_after: int | None = None,
        every: int = 1,
        unit: Literal["step", "epoch"] = "step",
        lr_mode: LRMode = "hold",
        averaging_lr: float | None = None,
        lowest_lr: float | None = None,
        weights: Weights = "average",
        merge: Literal["factors"] = "factors",
    ) -> None:
        super().__init__()
        averaging_start(start_fraction, 0)
        if start_after is not None and start_after < 0:
            raise ValueError(f"start_after must be at least 0, got {start_after}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        for name, value, known in (
            ("unit", unit, ("step", "epoch")),
            ("weights", weights, ("average", "raw")),
            ("merge", merge, ("factors",)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}")
        if lr_mode == "cyclic" and unit == "epoch":
            raise ValueError(
                "lr_mode=cyclic counts updates, unit=epoch does not; use unit=step with every= the "
                "updates of an epoch"
            )
        self.target = target or ""
        self._prefix = f"{target}." if target else ""
        self.start_fraction, self.start_after = start_fraction, start_after
        self.every, self.unit = every, unit
        self.weights, self.merge = weights, merge
        self.rate = AveragingRate(lr_mode, averaging_lr, lowest_lr, every)
        self.mean: WeightMean | None = None
        self.updates = 0
        self.start = 0
        self._hooks: list[RemovableHandle] = []
        self._finished = False

    @property
    def num_averaged(self) -> int:
        """Snapshots in the mean so far."""
        return 0 if self.mean is None else self.mean.num

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(target=self.target)

    # Before training

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_whole_weights(trainer)
        self.mean, self.updates, self._finished = None, 0, False
        self.rate.load_state_dict({"last": [], "highest": []})

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        network = network_of(pl_module, self.target)
        require_saved(pl_module, network, self._prefix)
        mean = self.mean = self.mean or WeightMean(network, self._prefix)
        mean.to_devices()
        self.start = (
            averaging_start(self.start_fraction, planned_length(trainer, pl_module, self.unit))
            if self.start_after is None
            else self.start_after
        )
        optimizer = optimizer_of(trainer, network, self.target)
        mine = {id(p) for p in network.parameters()}
        watched = [p for g in optimizer.param_groups for p in g["params"] if id(p) in mine]

        def begin(optimizer: Optimizer, *_: Any) -> None:
            position = self.updates if self.unit == "step" else trainer.current_epoch
            averages = position >= self.start
            update = self.updates + 1 - self.start if self.unit == "step" else 1
            self.rate.begin_step(optimizer, position, self.start, update if averages else None)

        def end(optimizer: Optimizer, *_: Any) -> None:
            self.rate.end_step()
            if was_skipped(optimizer) or all(p.grad is None for p in watched):
                return
            self.updates += 1
            if self.unit == "step" and is_snapshot(self.updates, self.start, self.every):
                mean.add()

        self._unhook()
        self._hooks = [
            optimizer.register_step_pre_hook(begin),
            optimizer.register_step_post_hook(end),
        ]

    # While training

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # Here and not at the epoch's own end, which comes after its validation.
        ends = self.unit == "epoch" and trainer.is_last_batch
        if ends and is_snapshot(trainer.current_epoch + 1, self.start, self.every) and self.mean:
            self.mean.add()

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._swap_in(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap_out()

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._swap_out()
        self.rate.end_step()
        self._unhook()

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._unhook()
        if self.num_averaged == 0:
            warnings.warn(
                f"averaging never started: after {self.updates} updates there was no snapshot (the "
                f"first is {self.every} {self.unit}s after the first {self.start}); the weights "
                "are as they were trained",
                stacklevel=2,
            )
            return
        self._swap_in(trainer, pl_module)
        self._finished = True

    def _swap_in(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.mean is None or not self.mean.num or self.weights == "raw":
            return
        self.mean.keep_statistics()
        if not self.mean.swapped:
            self.mean.swap()
        refresh_statistics(trainer, pl_module, self.mean.module)

    def _swap_out(self) -> None:
        if self.mean is not None and self.mean.swapped and not self._finished:
            self.mean.swap()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # Checkpoints

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.mean is None:
            return
        average, raw = self.mean.average, self.mean.raw
        holds: Weights = self.weights if self.mean.num else "raw"
        here, there = (average, raw) if holds == "average" else (raw, average)
        for network in (here, there):
            require_finite(network, self.updates)
        state = checkpoint["state_dict"]
        for name, first in self.mean.names_in(pl_module).items():  # of tied weights every name
            if name in state:
                state[name] = here[first]
        checkpoint.setdefault(KEY, {})[self.target] = {
            "holds": holds,
            "other": there,
            "num_averaged": self.mean.num,
            "updates": self.updates,
            "rate": self.rate.state_dict(),
        }

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        written: dict[str, Any] | None = checkpoint.get(KEY, {}).get(self.target)
        fits = trainer.state.fn == TrainerFn.FITTING
        self.mean = None  # what it had belonged to the weights before
        if written is None:
            if fits and pl_module.automatic_optimization:
                self.updates = int(checkpoint["global_step"])  # averaging joins a run
            return
        if not fits and (written["holds"] == self.weights or not written["other"]):
            return  # what was asked for is what was loaded
        networks = {written["holds"]: checkpoint["state_dict"]}
        networks["raw" if written["holds"] == "average" else "average"] = written["other"]
        mean = WeightMean(network_of(pl_module, self.target), self._prefix)
        if written["other"]:
            raw = {name: networks["raw"][name] for name in written["other"]}
            mean.load(networks["average"], raw, written["num_averaged"])
        if fits:
            self.mean, self.updates = mean, written["updates"]
            self.rate.load_state_dict(written["rate"])
        elif self.weights == "average":
            mean.swap()
