"""Progress against real Trainer runs: the sequence of steps, and the known or unknown end."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_kd.progress import Progress

pytestmark = [
    # the loader is not stateful, which is fine where all batches are the same
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended:UserWarning"),
    # and the run that resumes writes nothing
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint:UserWarning"),
]

BATCHES = 5


class Tiny(L.LightningModule):
    """One weight, five batches an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(BATCHES, 1)))

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(1, 1)))


class Manual(Tiny):
    """Two steps of the optimizer a batch: global_step runs twice as fast."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


class Endless(IterableDataset[torch.Tensor]):
    def __iter__(self):
        while True:
            yield torch.ones(1)


class Recorder(L.Callback):
    """Progress as each hook sees it."""

    def __init__(self, stop_at=None) -> None:
        self.started: list[Progress] = []
        self.batches: list[Progress] = []
        self.validations: list[Progress] = []
        self.stop_at = stop_at

    def on_train_start(self, trainer, pl_module):
        self.started.append(Progress.of(trainer))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(Progress.of(trainer))
        if len(self.batches) - 1 == self.stop_at:
            raise RuntimeError("power cut")

    def on_validation_start(self, trainer, pl_module):
        self.validations.append(Progress.of(trainer))


def fit(*, module=None, callbacks=(), ckpt_path=None, stop_at=None, **options) -> Recorder:
    recorder = Recorder(stop_at)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder, *callbacks],
        **{"max_epochs": 2, "num_sanity_val_steps": 0, **options},
    )
    trainer.fit(module or Tiny(), ckpt_path=ckpt_path)
    return recorder


def steps(progresses) -> list[int]:
    return [progress.step for progress in progresses]


def test_step_counts_batches_from_zero_over_all_epochs() -> None:
    seen = fit()
    assert steps(seen.batches) == list(range(10))
    assert [p.epoch for p in seen.batches] == [0] * 5 + [1] * 5
    assert {(p.max_steps, p.max_epochs) for p in seen.batches} == {(10, 2)}
    assert seen.started == [Progress(0, 10, 0, 2)]
    assert steps(seen.validations) == [5, 10]
    assert [p.fraction for p in seen.batches] == pytest.approx([s / 10 for s in range(10)])


def test_step_counts_batches_where_global_step_counts_something_else() -> None:
    assert steps(fit(module=Manual()).batches) == list(range(10))
    assert steps(fit(accumulate_grad_batches=2).batches) == list(range(10))


# 5 batches, 2 a step: 3 steps an epoch, the third of a single batch
@pytest.mark.parametrize(
    ("options", "batches", "epochs"),
    [
        ({"max_epochs": 3}, 15, 3),
        ({"limit_train_batches": 3}, 6, 2),
        ({"max_epochs": -1, "max_steps": 7}, 7, 2),
        ({"max_epochs": 1, "max_steps": 7}, 5, 1),
        ({"max_epochs": 2, "max_steps": 7}, 7, 2),
        ({"max_epochs": -1, "max_steps": 3, "accumulate_grad_batches": 2}, 5, 1),
        ({"max_epochs": -1, "max_steps": 4, "accumulate_grad_batches": 2}, 7, 2),
        ({"max_epochs": -1, "max_steps": 7, "accumulate_grad_batches": 2}, 12, 3),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 10, 2),
        ({"fast_dev_run": 2}, 2, 1),
    ],
)
def test_end_is_the_number_of_batches_lightning_really_trains(options, batches, epochs) -> None:
    seen = fit(**options)
    assert steps(seen.batches) == list(range(batches))
    assert {(p.max_steps, p.max_epochs) for p in seen.batches} == {(batches, epochs)}


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 8}])
def test_resumed_run_continues_the_sequence(tmp_path, every, accumulate, limit) -> None:
    options = {**limit, "accumulate_grad_batches": accumulate}
    whole = fit(**options)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=every, save_top_k=-1)
    fit(**options, callbacks=[saver])
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert checkpoints
    for checkpoint in checkpoints:
        _check_resumed(whole, fit(**options, ckpt_path=checkpoint), checkpoint)


@pytest.mark.parametrize("where", ["on_train_epoch_end", "on_validation_end"])
@pytest.mark.parametrize("interval", [1.0, 0.4])
def test_resume_from_a_checkpoint_of_validation_or_epoch_end(tmp_path, where, interval) -> None:
    saver = ModelCheckpoint(
        tmp_path,
        save_top_k=-1,
        every_n_epochs=1,
        save_on_train_epoch_end=where == "on_train_epoch_end",
    )
    options = {"max_epochs": 3, "val_check_interval": interval}
    whole = fit(**options, callbacks=[saver])
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints:
        _check_resumed(whole, fit(**options, ckpt_path=checkpoint), checkpoint)


def test_resume_from_a_checkpoint_written_when_the_training_broke_off(tmp_path) -> None:
    class SaveOnError(L.Callback):
        def on_exception(self, trainer, pl_module, exception):
            trainer.save_checkpoint(tmp_path / "broken.ckpt")

    with pytest.raises(RuntimeError, match="power cut"):
        fit(callbacks=[SaveOnError()], stop_at=7)
    seen = fit(ckpt_path=tmp_path / "broken.ckpt")
    assert steps(seen.started) == [7]
    assert steps(seen.batches) == [7, 8, 9]


def _check_resumed(whole: Recorder, resumed: Recorder, checkpoint) -> None:
    done = len(whole.batches) - len(resumed.batches)
    assert resumed.batches == whole.batches[done:], checkpoint
    if resumed.batches:  # right before the first batch already: schedules are set there, too
        assert steps(resumed.started) == steps(resumed.batches[:1]), checkpoint


def test_unbounded_training_has_steps_but_no_fraction() -> None:
    seen = fit(max_epochs=-1, callbacks=[StopAfter(7)])
    assert steps(seen.batches) == list(range(7))
    assert seen.batches[0].max_steps is seen.batches[0].max_epochs is None
    with pytest.raises(ValueError, match=r"no known end.*max_epochs"):
        _ = seen.batches[0].fraction


class StopAfter(L.Callback):
    def __init__(self, count) -> None:
        self.count = count

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.fit_loop.total_batch_idx == self.count - 1


def test_steps_that_cannot_be_converted_are_not_guessed() -> None:
    manual = fit(module=Manual(), max_epochs=-1, max_steps=4).batches
    assert [p.max_steps for p in manual] == [None, None]
    changing = fit(callbacks=[GradientAccumulationScheduler({1: 2})], max_steps=7).batches
    assert {p.max_steps for p in changing} == {None}
    assert {p.max_epochs for p in changing} == {2}


def test_iterable_data_has_an_end_only_through_max_steps() -> None:
    class Stream(Tiny):
        def train_dataloader(self):
            return DataLoader(Endless(), batch_size=1)

    options = {"max_epochs": -1, "max_steps": 3, "accumulate_grad_batches": 2}
    seen = fit(module=Stream(), limit_val_batches=0, **options)
    assert seen.batches == [Progress(step, 6, 0, None) for step in range(6)]


def test_fraction_never_exceeds_one_and_an_empty_training_is_done() -> None:
    assert Progress(12, 10, 0, 1).fraction == 1.0
    assert Progress(0, 0, 0, 0).fraction == 1.0
