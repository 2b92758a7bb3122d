"""Which updates are averaged, on real Trainer runs, and what is seen of the average meanwhile."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd.averaging import WeightMean
from tests.callbacks.counting import Counter, TwoOptimizers, averaging, fit

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def test_an_average_per_epoch_has_the_last_one_in_it() -> None:  # C5
    module, callback = Counter(), averaging(start_fraction=1 / 3, unit="epoch", lr_mode="none")
    fit(module, callback, max_epochs=3)
    assert module.value == 2.5  # Lightning's StochasticWeightAveraging ends at 1.5
    assert callback.num_averaged == 2


def test_its_own_validation_sees_the_epochs_snapshot() -> None:
    module = Counter()
    fit(module, averaging(unit="epoch"), max_epochs=3)
    assert module.validated == [1.0, 1.5, 2.0]


@pytest.mark.parametrize("settings", [{"start_after": 3}, {"start_fraction": 1.0}, {"every": 9}])
def test_never_started_it_leaves_the_weights_alone_and_says_so(settings) -> None:  # C6, C2
    module = Counter(batches=3)
    with pytest.warns(UserWarning, match="averaging never started: after 3 updates"):
        fit(module, averaging(**settings))
    assert module.value == 3.0  # Lightning's WeightAveraging ends at the initial 0
    assert module.validated == [3.0]


def test_of_two_optimizers_only_the_students_counts() -> None:  # C7
    module, callback = TwoOptimizers(), averaging()
    before = module.generator.weight.item()
    fit(module, callback)
    assert module.value == 1.5  # by global_step it would be mean(0, 1, 1, 2) = 1
    assert callback.num_averaged == 2
    assert callback.mean is not None
    assert list(callback.mean.average) == ["student.weight"]
    assert module.generator.weight.item() == pytest.approx(before + 2)


@pytest.mark.parametrize(
    ("settings", "mean", "count"),
    [({"start_fraction": 0.5}, 8.0, 5), ({"start_fraction": 0.5, "every": 2}, 8.0, 2)],
)
def test_snapshots_are_the_chosen_updates(settings, mean, count) -> None:  # C2 in a trainer
    module, callback = Counter(batches=10), averaging(**settings)
    fit(module, callback)
    assert (module.value, callback.num_averaged) == (mean, count)


def test_updates_are_counted_and_not_batches() -> None:
    module, callback = Counter(batches=6), averaging(start_fraction=0.5)
    fit(module, callback, accumulate_grad_batches=2, max_epochs=2)
    # six updates of half the gradient twice: 4, 5, 6
    assert (callback.updates, callback.num_averaged, module.value) == (6, 3, 5.0)


def test_a_batch_without_a_loss_is_no_update() -> None:
    class Some(Counter):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    module, callback = Some(batches=3), averaging()
    with pytest.warns(UserWarning, match="training_step` returned `None"):
        fit(module, callback)
    assert (callback.updates, callback.num_averaged, module.value) == (2, 2, 1.5)


def scaled(module, callback, spoilt, fused=False):
    """Three steps through a gradient scaler, of which one has gradients that are not finite."""

    class Spoil(L.Callback):
        def on_after_backward(self, trainer, pl_module):
            if spoilt(trainer.fit_loop.batch_idx):
                pl_module.weight.grad.fill_(torch.inf)

    class Optimizer(torch.optim.SGD):
        _step_supports_amp_scaling = False

    module.configure_optimizers = lambda: (
        torch.optim.SGD(module.student.parameters(), lr=1.0, fused=True)
        if fused
        else Optimizer(module.student.parameters(), lr=1.0)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    fit(module, callback, Spoil(), plugins=[precision])


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skipped_is_no_update(fused) -> None:
    module, callback = Counter(batches=3), averaging()
    scaled(module, callback, lambda batch: batch == 1, fused)
    assert (callback.updates, callback.num_averaged, module.value) == (2, 2, 1.5)


def test_validation_sees_the_average_and_training_goes_on_with_the_raw_weights() -> None:
    module = Counter(batches=2)
    raw: list[float] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raw.append(pl_module.value)

    trainer = fit(module, averaging(start_after=2), Look(), max_epochs=3)
    assert raw == [1, 2, 3, 4, 5, 6]
    assert module.validated == [2.0, 3.5, 4.5]
    for stage in (trainer.validate, trainer.test, trainer.predict):
        stage(module)
    assert module.validated[3:] == [4.5] * 3
    assert module.value == 4.5


def test_raw_weights_are_evaluated_and_kept_where_asked() -> None:
    module, callback = Counter(batches=2), averaging(weights="raw")
    trainer = fit(module, callback, max_epochs=2)
    trainer.test(module)
    assert module.validated == [2.0, 4.0, 4.0]
    assert callback.mean is not None
    assert callback.mean.average["student.weight"].item() == 2.5


def test_an_error_inside_validation_puts_the_raw_weights_back() -> None:  # C14
    class Fails(Counter):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            if self.trainer.current_epoch == 1:
                raise OSError("the disk is gone")

    module, callback = Fails(batches=3), averaging()
    with pytest.raises(OSError, match="the disk is gone"):
        fit(module, callback, max_epochs=2)
    assert module.validated == [2.0, 3.5]
    assert module.value == 6.0
    optimizer = module.optimizers()
    assert not isinstance(optimizer, list)
    optimizer.optimizer.step()  # nobody counts any more
    assert callback.updates == 6


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_training_with_it_is_bit_for_bit_training_without(unit) -> None:  # C14, lr_mode none
    class Noisy(Counter):
        def training_step(self, batch, batch_idx):
            return (self.student(torch.randn(4, 1)) - 1).square().mean() + torch.rand(())

    ends = []
    for callbacks in ([], [averaging(unit=unit, lr_mode="none", weights="average")]):
        torch.manual_seed(3)
        module, raw = Noisy(batches=3, lr=0.1), list[float]()

        class Look(L.Callback):
            def on_train_batch_end(self, trainer, pl_module, *_, raw=raw):
                raw.append(pl_module.value)

        fit(module, *callbacks, Look(), max_epochs=3)
        ends.append((raw, torch.get_rng_state().tolist()))
    assert ends[0] == ends[1]


def test_another_fit_begins_anew() -> None:
    module, callback = Counter(batches=2), averaging()
    fit(module, callback)
    assert module.value == 1.5
    fit(module, callback)
    assert (module.value, callback.num_averaged, callback.updates) == (3.0, 2, 2)


@pytest.mark.parametrize("target", ["inner.model", "", None])
def test_any_network_of_a_module_can_be_the_target(target) -> None:
    class Own(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleDict({"model": nn.Linear(1, 1, bias=False)})
            nn.init.zeros_(self.get_parameter("inner.model.weight"))

        def training_step(self, batch, batch_idx):
            return -self.get_parameter("inner.model.weight").sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

        def train_dataloader(self):
            return DataLoader(torch.zeros(2))  # type: ignore[arg-type]

    module = Own()
    fit(module, averaging(target=target))
    assert module.get_parameter("inner.model.weight").item() == 1.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "pupil"}, "Counter has no module 'pupil' to average; it has student; give"),
        ({"start_fraction": 0.5}, "nobody knows how many steps this training has"),
        ({"start_fraction": 0.5, "unit": "epoch"}, "nobody knows how many epochs this training"),
    ],
)
def test_what_cannot_be_averaged_is_refused_before_training(settings, message) -> None:
    module = Counter()
    with pytest.raises(ValueError, match=message):
        fit(module, averaging(**settings), max_epochs=-1)
    assert module.rates == []


def test_a_network_that_nothing_trains_is_refused() -> None:
    module = TwoOptimizers()
    with pytest.raises(ValueError, match="no optimizer trains a weight of 'teacher'"):
        fit(module, averaging(target="teacher"))


def test_manual_optimization_of_unknown_length_needs_a_start(monkeypatch) -> None:
    monkeypatch.delattr(TwoOptimizers, "planned_student_updates")
    with pytest.raises(ValueError, match=r"module a method planned_student_updates\(\)"):
        fit(TwoOptimizers(), averaging())
    module = TwoOptimizers()
    fit(module, averaging(start_after=0))
    assert module.value == 1.5


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
def test_a_strategy_that_shards_is_refused_before_training(name, monkeypatch) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    sharding = type(name, (SingleDeviceStrategy,), {})(accelerator=None, device="cpu")
    module = Counter()
    with pytest.raises(ValueError, match=f"{name} keeps weights or their updates in pieces"):
        fit(module, averaging(), strategy=sharding)
    assert module.rates == []


def test_files_of_weights_only_are_refused_before_training(tmp_path) -> None:
    writes = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.raises(ValueError, match="would write the raw weights instead of the average"):
        fit(Counter(), averaging(), writes, enable_checkpointing=True)


def test_weights_that_a_checkpoint_cannot_hold_are_refused() -> None:
    class Renames(Counter):
        def state_dict(self, *args, **kwargs):
            return {"w": self.student.weight}

    with pytest.raises(ValueError, match=r"Renames.state_dict\(\) has no such name"):
        fit(Renames(), averaging())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_fraction": 1.5}, "between 0 and 1, got 1.5"),
        ({"start_after": -1}, "start_after must be at least 0, got -1"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"unit": "batch"}, "unit must be step or epoch, got 'batch'"),
        ({"weights": "both"}, "weights must be average or raw, got 'both'"),
        ({"merge": "delta"}, "merge must be factors, got 'delta'"),
        (
            {"lr_mode": "cyclic", "unit": "epoch", "averaging_lr": 1.0, "lowest_lr": 0.1},
            "lr_mode=cyclic counts updates",
        ),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        averaging(**settings)


def test_the_mean_of_factors_is_not_the_mean_of_products() -> None:  # C13
    adapter = nn.ParameterDict({"A": torch.zeros(1, 1), "B": torch.zeros(1, 1)})
    mean = WeightMean(adapter)
    for value in (1.0, 3.0):
        for factor in adapter.values():
            factor.data.fill_(value)
        mean.add()
    mean.swap()
    assert (adapter["B"] @ adapter["A"]).item() == 4.0
    assert (1 * 1 + 3 * 3) / 2 == 5.0  # what averaging the products would give
