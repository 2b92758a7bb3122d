"""The recorder on real trainings: one file an epoch or so many steps, and the same after a kill."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.callbacks import TrajectoryRecorder
from lightning_kd.methods import FineTuning
from lightning_kd.run_checkpoints import run_checkpoints
from lightning_kd.trajectory import TeacherTrajectory
from tests import tiny
from tests.conformance.matrix import TinyData, differing, trainer, weights
from tests.kill import ROOT, run_to_end

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")

TASK = tiny.TASKS["classification"]


class DiedError(Exception):
    """In the place of a kill."""


class Dies(L.Callback):
    """After so many steps; ``late`` is behind the recorder and before the checkpoint's writing."""

    def __init__(self, step, late=False) -> None:
        self.step, self.late = step, late

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if not self.late and trainer.global_step == self.step:
            raise DiedError

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if self.late and trainer.global_step == self.step:
            raise DiedError


def run(folder: Path, *more: L.Callback, every=None, epochs=3, **settings: Any) -> FineTuning:
    """Fine-tune three steps an epoch, resumable; goes on from ``last.ckpt``."""
    module = tiny.method("FineTuning", TASK, learning_rate=0.01)
    checkpoints = run_checkpoints(folder / "checkpoints", module.monitor, 1)
    recorder = TrajectoryRecorder(folder / "path", every)
    settings = {"max_epochs": epochs, "enable_checkpointing": True, **settings}
    made = trainer(callbacks=[recorder, *more, *checkpoints], **settings)
    last = folder / "checkpoints" / "last.ckpt"
    batch_size = 4 // settings.get("accumulate_grad_batches", 1)
    resumed = last if last.exists() else None
    made.fit(module, datamodule=TinyData(TASK, batch_size), ckpt_path=resumed)
    assert isinstance(module, FineTuning)
    return module


def index(folder: Path) -> Any:
    found = json.loads((folder / "path" / "index.json").read_text())
    for part in found["checkpoints"]:  # the file has the run in it
        part.pop("sha256")
    return {**found, "run": ""}


def same_files(left: Path, right: Path) -> bool:
    ours, theirs = (TeacherTrajectory.read(f / "path") for f in (left, right))
    return all(
        differing(ours.weights(a), theirs.weights(b)) == []
        for a, b in zip(ours.checkpoints, theirs.checkpoints, strict=True)
    )


def test_7_an_epoch_an_entry_with_the_weights_of_its_end(tmp_path) -> None:
    kept, losses, scores = [], [], []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            losses.append(float(outputs["loss"]))

        def on_validation_end(self, trainer, pl_module) -> None:
            scores.append(float(trainer.callback_metrics["val/accuracy"]))
            kept.append(weights(pl_module.student))

    run(tmp_path, Look())
    path = TeacherTrajectory.read(tmp_path / "path")
    path.verify(TASK.labels)  # type: ignore[attr-defined]
    assert [(c.j, c.epoch, c.step) for c in path.checkpoints] == [(1, 0, 3), (2, 1, 6), (3, 2, 9)]
    assert path.monitor == "val/accuracy"
    assert [c.metric for c in path.checkpoints] == scores
    means = [sum(losses[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert [c.train_loss for c in path.checkpoints] == pytest.approx(means, rel=1e-6)
    for checkpoint, expected in zip(path.checkpoints, kept, strict=True):
        found = path.weights(checkpoint)
        assert all(torch.equal(found[name], expected[name]) for name in found)
    assert (tmp_path / "path" / "config.json").exists()


@pytest.mark.parametrize(
    ("every", "steps"), [(2, [2, 4, 6, 8, 9]), (4, [4, 8, 9]), (3, [3, 6, 9]), (100, [9])]
)
def test_by_steps_the_end_is_always_there(every, steps, tmp_path) -> None:
    run(tmp_path, every=every)
    assert [c["step"] for c in index(tmp_path)["checkpoints"]] == steps
    assert index(tmp_path)["checkpoints"][-1]["epoch"] == 2


def test_validation_of_the_same_step_is_noted_and_no_other(tmp_path) -> None:
    run(tmp_path, every=2, val_check_interval=2, epochs=2)
    noted = {c["step"]: c["metric"] is not None for c in index(tmp_path)["checkpoints"]}
    assert noted == {2: True, 4: False, 6: False}  # validated at 2 and 5, of three an epoch


def test_an_accumulated_step_is_recorded_once(tmp_path) -> None:
    run(tmp_path / "whole", every=2)
    run(tmp_path / "halves", every=2, accumulate_grad_batches=2)
    whole, halves = (index(tmp_path / name)["checkpoints"] for name in ("whole", "halves"))
    assert [c["step"] for c in halves] == [c["step"] for c in whole]
    assert [c["train_loss"] for c in halves] == pytest.approx([c["train_loss"] for c in whole])


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("death", [Dies(0), Dies(4), Dies(5), Dies(6), Dies(6, late=True)])
def test_a_resumed_run_leaves_the_same_trajectory(death, every, tmp_path) -> None:
    whole = run(tmp_path / "whole", every=every)
    with pytest.raises(DiedError):
        run(tmp_path / "cut", death, every=every)
    resumed = run(tmp_path / "cut", every=every)
    assert differing(weights(whole), weights(resumed)) == []
    assert index(tmp_path / "cut") == index(tmp_path / "whole")
    assert same_files(tmp_path / "cut", tmp_path / "whole")


def test_it_goes_on_where_a_longer_training_is_asked_for(tmp_path) -> None:
    run(tmp_path, epochs=2)
    run(tmp_path, epochs=3)
    assert [c["step"] for c in index(tmp_path)["checkpoints"]] == [3, 6, 9]


def test_another_run_s_trajectory_is_not_touched(tmp_path) -> None:
    run(tmp_path, epochs=1)
    before = (tmp_path / "path" / "index.json").read_bytes()
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ValueError, match=r"path holds the trajectory of another run, 1 checkpoint"):
        run(tmp_path)
    assert (tmp_path / "path" / "index.json").read_bytes() == before


@pytest.mark.parametrize("lost", ["all", "last entry", "run"])
def test_a_resumed_run_misses_what_it_had_recorded(lost, tmp_path) -> None:
    run(tmp_path, epochs=2)
    path = tmp_path / "path" / "index.json"
    found = json.loads(path.read_text())
    if lost == "all":
        path.unlink()
    elif lost == "run":
        path.write_text(json.dumps({**found, "run": "another"}))
    else:
        path.write_text(json.dumps({**found, "checkpoints": found["checkpoints"][:1]}))
    with pytest.raises(
        ValueError, match=r"path lacks the 2 checkpoint\(s\) that this run recorded"
    ):
        run(tmp_path, epochs=3)


class Anyones(L.LightningModule):
    """A module that knows nothing of this library."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=4)


def test_any_module_can_leave_one_with_its_buffers(tmp_path) -> None:
    module = Anyones()
    recorder = TrajectoryRecorder(tmp_path, network="net", labels=["a", "b"])
    tiny.trainer(recorder, max_epochs=2).fit(module)
    path = TeacherTrajectory.read(tmp_path)
    path.verify(["a", "b"])
    assert [c.metric for c in path.checkpoints] == [None, None]
    found = path.weights(path.checkpoints[-1])
    assert differing(found, dict(module.net.state_dict())) == []
    assert found["1.num_batches_tracked"] == 4
    assert path.weights(path.checkpoints[0])["1.num_batches_tracked"] == 2


def test_a_network_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(
        TypeError, match="Anyones has no network named 'student'; its networks: net"
    ):
        tiny.trainer(TrajectoryRecorder(tmp_path)).fit(Anyones())
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        TrajectoryRecorder(tmp_path, every_n_steps=0)


def test_a_dry_run_leaves_nothing_to_follow(tmp_path) -> None:
    tiny.trainer(TrajectoryRecorder(tmp_path, network="net"), fast_dev_run=True).fit(Anyones())
    assert TeacherTrajectory.read(tmp_path).checkpoints == ()


@pytest.mark.ddp
@pytest.mark.timeout(200)
def test_two_processes_leave_one_trajectory(tmp_path) -> None:
    run_to_end([ROOT / "tests/callbacks/record_pair.py", tmp_path], timeout=180)
    path = TeacherTrajectory.read(tmp_path / "path")
    path.verify(["negative", "positive"])
    assert [c.step for c in path.checkpoints] == [2, 3, 4, 6]  # 3 is the end of the first call
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert [(state["run"], state["recorded"]) for state in states] == [(path.run, 4)] * 2
