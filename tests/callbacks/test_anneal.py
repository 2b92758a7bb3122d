"""Anneal on real Trainer runs: values, logs, refused names, resume, YAML."""

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.callbacks.anneal import Anneal
from lightning_kd.schedules import Constant, Linear, StepDown


class Tiny(L.LightningModule):
    """Reads two annealed numbers; the loss depends on them, hence the weights do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.temperature = 1.0
        self.soft_weight = 0
        self.title = "tiny"
        self.seen: list[tuple[float, float]] = []
        self.at_start: float | None = None

    def on_train_start(self):
        self.at_start = self.temperature

    def training_step(self, batch, batch_idx):
        self.seen.append((self.temperature, self.soft_weight))
        return (self.weight * batch[0] / self.temperature - self.soft_weight).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 1)))


class Logged(L.Callback):
    def __init__(self) -> None:
        self.bars: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.bars.append(dict(trainer.progress_bar_metrics))


def fit(module, *callbacks, ckpt_path=None, **options) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"max_epochs": 3, **options},
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def both() -> Anneal:
    return Anneal(temperature=StepDown(3, 1), soft_weight=Linear(1.2, 0.0))


def test_sets_the_attributes_before_the_training_and_before_every_batch() -> None:
    module = Tiny()
    fit(module, both())
    assert module.at_start == 3.0
    assert [t for t, _ in module.seen] == [3.0] * 4 + [2.0] * 4 + [1.0] * 4
    assert [w for _, w in module.seen] == pytest.approx([1.2 - 0.1 * step for step in range(12)])


def test_logs_the_values_under_their_names() -> None:
    logged = Logged()
    trainer = fit(Tiny(), both(), logged)
    assert [bar["temperature"] for bar in logged.bars] == [3.0] * 4 + [2.0] * 4 + [1.0] * 4
    assert trainer.logged_metrics["soft_weight"] == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended:UserWarning")
@pytest.mark.parametrize("done", [1, 4, 6])
def test_a_resumed_run_sees_the_same_values_and_ends_with_the_same_weight(tmp_path, done) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == done:
                trainer.save_checkpoint(tmp_path / "some.ckpt")

    whole, resumed = Tiny(), Tiny()
    fit(whole, both(), Save())
    fit(resumed, both(), ckpt_path=tmp_path / "some.ckpt")
    assert resumed.seen == whole.seen[done:]
    assert resumed.at_start == whole.seen[done][0]
    assert torch.equal(resumed.weight, whole.weight)


def test_has_no_state() -> None:
    assert both().state_dict() == {}


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_name_the_module_lacks_is_answered_with_near_ones(stage) -> None:
    callback = Anneal(temperatures=Constant(1))
    expected = r"Tiny has no number named 'temperatures' to set; its numbers: temperature$"
    with pytest.raises(ValueError, match=expected):
        callback.setup(L.Trainer(logger=False, accelerator="cpu"), Tiny(), stage)


@pytest.mark.parametrize("name", ["title", "training_step", "weight", "training", "epsilon"])
def test_what_is_not_a_number_is_not_overwritten(name) -> None:
    module = Tiny()
    with pytest.raises(ValueError, match=f"no number named '{name}' to set; its numbers: "):
        fit(module, Anneal({name: Constant(1)}))
    assert module.seen == []


def test_a_module_without_numbers_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"LightningModule has no number .* no numbers at all"):
        Anneal(tau=Constant(1)).setup(
            L.Trainer(logger=False, accelerator="cpu"), L.LightningModule(), "fit"
        )


def test_no_schedule_and_two_schedules_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="no schedule"):
        Anneal()
    with pytest.raises(ValueError, match="two schedules for temperature"):
        Anneal({"temperature": Constant(1)}, temperature=Constant(2))


YAML = """
callback:
  class_path: lightning_kd.callbacks.anneal.Anneal
  init_args:
    schedules:
      temperature: {class_path: lightning_kd.schedules.StepDown, init_args: {start: 10, end: 1}}
      soft_weight: {class_path: Linear, init_args: {start: 1, end: 0}}
"""


def test_comes_out_of_yaml_and_goes_back() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=L.Callback)
    parsed = parser.parse_string(YAML)
    expected = {"temperature": StepDown(10, 1), "soft_weight": Linear(1, 0)}
    assert parser.instantiate(parsed).callback.schedules == expected
    again = parser.parse_string(parser.dump(parsed, skip_unset=False))
    assert parser.instantiate(again).callback.schedules == expected
