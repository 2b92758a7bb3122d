"""A script of two gloo processes that train under ZeRO, and of what they write and refuse.

They are forked after the imports, which cost more than all the training. What one process does
alone, for comparison, is here as well.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning_kd.methods import TaskModule
from lightning_kd.optim import NestedAdamW
from lightning_kd.phases import Phase, fit_phases
from lightning_kd.run_checkpoints import run_checkpoints
from lightning_kd.strategies import DeepSpeedCPUStrategy
from tests import tiny
from tests.conformance.matrix import TinyData, fit, trainer, weights

TRAINED: dict[str, dict[str, Any]] = {
    "DyLoRA": {"optimizer_semantics": "dense"},
    "FineTuning": {},
    "SoFT": {},
}
STAGES = (2, 3)
STEPS, WRITTEN = 5, 2
"""Optimizer steps of a training, and the one whose checkpoint others go on with."""


def method(name: str, **more: Any) -> TaskModule:
    """A method whose optimizer does not make a step of full length from a rounding error.

    ZeRO has no double precision, and Adam divides a gradient by its own size: one that is zero in
    theory, such as a key's bias, would move at full speed wherever it is not quite zero.
    """
    torch.manual_seed(0)
    settings = {**TRAINED.get(name, {}), **more}
    if "optimizer" not in settings:
        settings["optimizer"] = lambda params: torch.optim.AdamW(params, lr=0.01, eps=1e-3)
    return tiny.method(name, batch_norm=False, **settings)


def strategy(stage: int | None) -> Any:
    """One process, or ZeRO on two, where even the smallest weight is in pieces."""
    if stage is None:
        return "auto"
    made = DeepSpeedCPUStrategy(stage=stage)
    assert made.config is not None
    made.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return made


def ways(stage: int | None) -> dict[str, Any]:
    """Three batches an epoch of four examples each, and a window of two batches ends within."""
    return {
        "strategy": strategy(stage),
        "devices": 1 if stage is None else 2,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.5,
    }


def train(
    name: str,
    stage: int | None,
    folder: Path | None = None,
    resume: Path | None = None,
    precision: Any = "32-true",
) -> dict[str, Any]:
    """Weights and metrics after a training; ``folder`` gets a checkpoint of step `WRITTEN`."""
    module, callbacks = method(name), list[L.Callback]()
    before = {key: value.stride() for key, value in module.named_parameters()}
    if folder is not None:
        callbacks = [ModelCheckpoint(folder, "{step}", every_n_train_steps=WRITTEN, save_top_k=-1)]
    run = fit(
        module,
        batch_size=4 if stage is None else 2,
        max_steps=STEPS,
        ckpt_path=resume,
        precision=precision,
        callbacks=callbacks,
        enable_checkpointing=folder is not None,
        **ways(stage),
    )
    assert run.global_step == STEPS
    _check_ordinary(module, before)
    return {
        "weights": weights(module),
        "metrics": {key: float(value) for key, value in run.callback_metrics.items()},
    }


def _check_ordinary(module: TaskModule, strides: dict[str, tuple[int, ...]]) -> None:
    """Nothing of DeepSpeed is left in the module."""
    for name, parameter in module.named_parameters():
        assert parameter.stride() == strides[name]
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
        assert not [key for key in vars(parameter) if key.startswith("ds_") or "zero" in key]
    for inner in module.modules():
        assert not [key for key in vars(inner) if key.startswith("ds_")]
        assert type(inner._parameters) is dict
        hooks = [hook for key in vars(inner) if key.endswith("_hooks") for hook in vars(inner)[key]]
        assert hooks == []


def train_phases(stage: int | None, folder: Path) -> dict[str, Tensor]:
    """Weights after AnnealingKD's two phases; ``folder`` gets their checkpoints."""
    module = method("AnnealingKD", max_temperature=2, teacher_epochs=2, label_epochs=1)
    batch_size = 4 if stage is None else 2

    def trainer_for(phase: Phase, checkpoints: Path) -> L.Trainer:
        callbacks = run_checkpoints(checkpoints, module.monitor, 100)
        settings = {**ways(stage), "max_epochs": phase.max_epochs, "callbacks": callbacks}
        return trainer(enable_checkpointing=True, **settings)

    fit_phases(module, TinyData(module.task, batch_size), folder, trainer_for, "last")
    return weights(module)


class Manual(L.LightningModule):
    """Steps by itself, as every module with several optimizers does."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = nn.Linear(2, 2)

    def training_step(self, *args: Any) -> None:
        raise AssertionError

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def refusals() -> dict[str, str]:
    """The message of each training that ZeRO cannot do."""
    quantized = method("FineTuning")
    quantized.extra = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    row_wise: Any = lambda p: NestedAdamW([{"params": p}], lambda: slice(1))  # noqa: E731
    tried: dict[str, tuple[Any, int]] = {
        "strict": (tiny.method("DyLoRA"), 2),
        "row-wise": (method("DyLoRA", optimizer=row_wise), 2),
        "quantized": (quantized, 3),
        "manual": (Manual(), 2),
    }
    found = {}
    for name, (module, stage) in tried.items():
        try:
            made = trainer(strategy=strategy(stage), devices=2)
            if isinstance(module, Manual):
                made.fit(module, DataLoader(TensorDataset(torch.zeros(1))))
            else:
                made.fit(module, datamodule=TinyData(module.task, 2))
        except ValueError as error:
            found[name] = str(error)
    return found


def _run_all(folder: Path, rank: int) -> None:
    # as a launcher such as torchrun tells its processes who they are
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2")
    found: dict[str, Any] = {"refusals": refusals()}
    for stage in STAGES:
        for name in TRAINED:
            found[f"{name} {stage}"] = train(name, stage, folder / f"{name} {stage}")
        found[f"phases {stage}"] = train_phases(stage, folder / f"phases {stage}")
    alone = folder / f"FineTuning None/step={WRITTEN}.ckpt"
    found["from one process"] = train("FineTuning", 3, resume=alone)
    third = folder / f"DyLoRA 3/step={WRITTEN}.ckpt"
    found["from 3 to 2"] = train("DyLoRA", 2, resume=third)
    half, written = folder / "half", folder / f"half/step={WRITTEN}.ckpt"
    found["half"] = train("FineTuning", 2, half, precision="bf16-mixed")
    found["half, resumed"] = train("FineTuning", 3, resume=written, precision="bf16-mixed")
    torch.save(found, folder / f"{rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps(found["refusals"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    other = os.fork()
    _run_all(Path(sys.argv[1]), 0 if other else 1)
    if other and os.waitpid(other, 0)[1] != 0:
        sys.exit("the second process failed")
