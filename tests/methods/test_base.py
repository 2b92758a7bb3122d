"""What TaskModule does for every method: terms, optimizer, evaluation, checkpoints, errors."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_kd.checkpoint_io import AtomicCheckpointIO
from lightning_kd.data import GLUE
from lightning_kd.methods import FineTuning, TaskModule
from lightning_kd.tasks import Classification
from tests import tiny

TASK = tiny.TASKS["classification"]


class TwoTerms(TaskModule):
    """A method with two terms, the second one of the test's choosing."""

    second = 0.5

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        hard = self.task.hard_loss(self.predict(batch), batch).mean()
        return {"hard": hard, "second": hard.detach() * 0 + self.second}


def made(**settings) -> TwoTerms:
    return TwoTerms(tiny.model(), TASK, **settings)


class Poison(L.Callback):
    """Makes the second term or a weight infinite at one step."""

    def __init__(self, step: int, what: str) -> None:
        self.at, self.what = step, what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.at and self.what == "term":
            pl_module.second = float("inf")

    def on_before_zero_grad(self, trainer, pl_module, optimizer):  # after the step, before its end
        if trainer.global_step == self.at and self.what == "weight":
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("nan"))


def test_the_loss_is_the_sum_of_the_terms_and_each_is_logged() -> None:
    module = made()
    losses: list[tuple[float, dict[str, Tensor]]] = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append((outputs["loss"].item(), dict(trainer.callback_metrics)))

    trainer = tiny.trainer(Losses(), log_every_n_steps=1, max_epochs=1)
    trainer.fit(module, tiny.loader(), tiny.loader())
    assert len(losses) == 4
    for loss, logged in losses:
        assert logged["train/second"].item() == 0.5
        assert loss == pytest.approx(logged["train/hard"].item() + 0.5)
        assert logged["train/grad_norm"].item() > 0


def test_the_student_trains_in_train_mode_and_weights_move() -> None:
    module = made(learning_rate=0.01, warmup_fraction=0.0)
    modes = [module.student.training]
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    tiny.trainer(max_epochs=1).fit(module, tiny.loader(), tiny.loader())
    assert [*modes, module.student.training] == [False, True]
    same = [n for n, p in module.named_parameters() if torch.equal(p, before[n])]
    assert all("token_type" in n or "position" in n or "key.bias" in n for n in same)


def test_rate_decay_warm_up_and_schedule_are_those_asked_for() -> None:
    module = made(learning_rate=0.5, weight_decay=0.25, warmup_fraction=0.25, lr_schedule="cosine")
    rates = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = tiny.trainer(Rates())
    trainer.fit(module, tiny.loader(), tiny.loader())
    assert rates[:3] == pytest.approx([0, 0.25, 0.5])  # warm over two of eight steps
    assert rates[5] == pytest.approx(0.25)  # half way down
    matrices, vectors = trainer.optimizers[0].param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.25, 0.0)
    assert {p.dim() for p in vectors["params"]} == {1}


def test_another_optimizer_decides_rate_and_decay_and_keeps_the_schedule() -> None:
    module = made(
        optimizer=lambda params: torch.optim.SGD(params, lr=0.3, momentum=0.9), learning_rate=7.0
    )
    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(module, tiny.loader(), tiny.loader())
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["initial_lr"] == 0.3
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)  # linear, at the end


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [
        ("32-true", 1.0, True),
        ("16-mixed", None, False),
        ("bf16-mixed", None, True),
        ("bf16-mixed", 1.0, False),
    ],
)
def test_adamw_is_fused_except_where_gradients_could_not_be_clipped_then(
    precision, clip, fused
) -> None:
    module = made()
    trainer = tiny.trainer(max_steps=1, limit_val_batches=0, gradient_clip_val=clip)
    trainer.strategy.precision_plugin.precision = precision
    module.trainer = trainer
    assert [g["fused"] for g in module.make_optimizer().param_groups] == [fused, fused]


def test_a_training_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no known end.*set trainer.max_epochs"):
        tiny.trainer(max_epochs=-1, max_time="00:00:01:00").fit(
            made(), tiny.loader(), tiny.loader()
        )


@pytest.mark.parametrize("eval_sets", [("",), ("", "mismatched")])
def test_every_evaluation_set_is_reported_under_its_name(eval_sets) -> None:
    task = Classification("mnli", ("a", "b"), ("accuracy", "matthews"), eval_sets)
    module = TwoTerms(tiny.model(task=task), task)
    loaders = [tiny.loader(seed=i) for i in range(len(eval_sets))]
    for stage, run in (("val", "validate"), ("test", "test")):
        tables = getattr(tiny.trainer(), run)(module, loaders, verbose=False)
        values = {k: v for table in tables for k, v in table.items()}
        names = [
            f"{stage}/{s}/{m}" if s else f"{stage}/{m}"
            for s in eval_sets
            for m in ("accuracy", "matthews")
        ]
        assert [key.split("/dataloader_idx")[0] for key in values] == names
    assert set(module.evaluations) == {(s, None) for s in eval_sets}
    assert module.monitor == "val/accuracy"


def test_predictions_come_with_the_number_of_each_example() -> None:
    module = made()
    (first, *_) = tiny.trainer().predict(module, tiny.loader()) or []
    with torch.no_grad():
        expected = module.predict(tiny.batch(16)).logits.argmax(-1)
    assert torch.equal(first["answers"], expected[:4])  # type: ignore[call-overload]
    assert torch.equal(first["idx"], torch.arange(4))  # type: ignore[call-overload]


def test_a_term_that_is_not_finite_stops_the_run_with_its_name_and_step() -> None:
    with pytest.raises(FloatingPointError, match=r"second became inf at step 3; .*resume"):
        tiny.trainer(Poison(3, "term")).fit(made(), tiny.loader(), tiny.loader())


@pytest.mark.parametrize("what", ["term", "weight"])
def test_no_checkpoint_is_overwritten_once_something_is_not_finite(what, tmp_path) -> None:
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=1)
    trainer = tiny.trainer(
        Poison(3, what), saver, enable_checkpointing=True, plugins=[AtomicCheckpointIO()]
    )
    with pytest.raises(FloatingPointError, match="the last checkpoint is kept"):
        trainer.fit(made(), tiny.loader(), tiny.loader())
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 3  # also where the fourth step itself went wrong
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())
    assert not [file for file in tmp_path.iterdir() if file.suffix != ".ckpt"]


def test_a_checkpoint_loads_with_weights_only_and_predicts_equally(tmp_path) -> None:
    base = tiny.model_folder(tmp_path / "base")
    module = FineTuning(str(base), "sst2", learning_rate=0.01)
    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(module, tiny.loader(), tiny.loader())
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    saved = torch.load(tmp_path / "some.ckpt", weights_only=True)
    assert saved["lightning_kd"] == {"method": "FineTuning", "task": "sst2"}
    assert saved["hyper_parameters"]["student"] == str(base)
    loaded = FineTuning.load_from_checkpoint(tmp_path / "some.ckpt")
    assert loaded.task is GLUE.tasks["sst2"]
    with torch.no_grad():
        mine, theirs = (m.eval().predict(tiny.batch()).logits for m in (module, loaded))
    assert torch.equal(mine, theirs)


def test_objects_are_no_hyper_parameters() -> None:
    module = made(learning_rate=0.125, optimizer=torch.optim.SGD)
    assert module.hparams["learning_rate"] == 0.125
    assert not {"student", "task", "optimizer"} & set(module.hparams)


def test_a_foreign_checkpoint_is_refused(tmp_path) -> None:
    class Other(TwoTerms):
        pass

    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(made(), tiny.loader(), tiny.loader())
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    saved = torch.load(tmp_path / "some.ckpt", weights_only=True)
    with pytest.raises(ValueError, match="is of TwoTerms on sst2, this is Other on sst2"):
        Other(tiny.model(), TASK).on_load_checkpoint(saved)
    rte = Classification("rte", ("a", "b"))
    with pytest.raises(ValueError, match="is of TwoTerms on sst2, this is TwoTerms on rte"):
        TwoTerms(tiny.model(), rte).on_load_checkpoint(saved)
    del saved["lightning_kd"]
    with pytest.raises(ValueError, match="not written by lightning-kd"):
        made().on_load_checkpoint(saved)


def test_an_export_is_a_folder_that_transformers_loads(tmp_path: Path) -> None:
    import transformers

    module = made()
    module.export(tmp_path / "export")
    assert (tmp_path / "export" / "model.safetensors").is_file()
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    with torch.no_grad():
        expected = module.predict(tiny.batch()).logits
        assert torch.equal(TASK.predict(loaded.eval(), tiny.batch()).logits, expected)


def test_counts_what_trains() -> None:
    module = made()
    module.student.requires_grad_(requires_grad=False)
    module.student.get_submodule("classifier").requires_grad_()
    assert module.num_trainable_parameters() == 8 * 2 + 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lr_schedule": "step"},
            "lr_schedule must be one of linear, cosine, constant, steps, got 'step'",
        ),
        ({"warmup_fraction": 1.5}, "warmup_fraction must be between 0 and 1, got 1.5"),
        ({"task": "sst-2"}, "there is no task 'sst-2'; choose from alpaca, .*, sst2, stsb"),
    ],
)
def test_a_setting_out_of_range_is_named_before_anything_is_loaded(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        TwoTerms(**{"student": "/no/such/folder", "task": TASK, **settings})


def test_dropout_is_another_one_in_every_batch_and_the_same_one_in_a_run_with_the_same_seed() -> (
    None
):
    def masks(seed: int) -> list[Tensor]:
        found = []

        class Drawn(TwoTerms):
            def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
                found.append(torch.rand(4))
                return super().objective(batch)

        torch.manual_seed(seed)
        tiny.trainer().fit(Drawn(tiny.model(), TASK), tiny.loader(), tiny.loader())
        return found

    first = masks(1)
    assert len({tuple(mask.tolist()) for mask in first}) == 8
    assert torch.equal(torch.stack(first), torch.stack(masks(1)))
    assert not torch.equal(torch.stack(first), torch.stack(masks(2)))
