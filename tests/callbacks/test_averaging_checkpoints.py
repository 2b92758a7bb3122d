"""Checkpoints: the average for whoever loads them, the raw weights for a training that goes on."""

import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_kd.callbacks import StudentAveraging
from lightning_kd.checkpoint_io import AtomicCheckpointIO
from lightning_kd.methods import AnnealingKD, VanillaKD
from lightning_kd.phases import fit_phases
from tests import tiny
from tests.callbacks.counting import Counter, Record, averaging
from tests.callbacks.counting import fit as fit_counter
from tests.conformance.matrix import TinyData, differing, fit, tensors_in, weights
from tests.kill import ROOT

EVALUATE = """
import sys, lightning as L
from lightning_kd.methods import FineTuning
from tests import tiny
from tests.conformance.matrix import TinyData, trainer
from lightning_kd.callbacks import StudentAveraging
callbacks = [StudentAveraging(weights=sys.argv[2])] if sys.argv[2] != "none" else []
module = FineTuning(tiny.model(seed=9), tiny.TASKS["classification"])
made = trainer(callbacks=callbacks)
(metrics,) = made.validate(module, TinyData(module.task), ckpt_path=sys.argv[1], verbose=False)
print(metrics["val/accuracy"], module.student.classifier.weight.double().sum().item())
"""


def settings(**more):
    return {"start_fraction": 0.5, **more}


@pytest.mark.parametrize("stop", [3, 5, 8])  # of 9, averaging after 4; 5 and 8 inside an epoch
@pytest.mark.parametrize("mode", ["hold", "peak", "none"])
@pytest.mark.parametrize("kept", ["average", "raw"])
def test_a_resumed_run_is_the_uninterrupted_one(stop, mode, kept, tmp_path) -> None:  # C11
    ends = []
    for ckpt_path in (None, tmp_path / f"step={stop}.ckpt"):
        module = tiny.method("FineTuning", learning_rate=0.01)
        callback, record = StudentAveraging(**settings(lr_mode=mode, weights=kept)), Record()
        torch.manual_seed(0 if ckpt_path is None else 99)
        fit(
            module,
            folder=tmp_path,
            ckpt_path=ckpt_path,
            max_steps=9,
            callbacks=[callback, record],
        )
        assert callback.mean is not None
        ends.append((weights(module), callback, record.raw))
    (whole, first, raw), (resumed, second, raw_again) = ends
    assert differing(whole, resumed) == []
    assert (first.num_averaged, first.updates) == (second.num_averaged, second.updates) == (5, 9)
    assert first.mean is not None
    assert second.mean is not None
    assert differing(first.mean.average, second.mean.average) == []
    assert first.rate.state_dict() == second.rate.state_dict()
    assert [differing(a, b) for a, b in zip(raw[stop:], raw_again, strict=True)] == [[]] * (
        9 - stop
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A training that validated and wrote its average, its trainer and the file."""
    folder = tmp_path_factory.mktemp("written")
    best = ModelCheckpoint(folder, filename="best", monitor="val/accuracy", mode="max")
    record, callback = Record(), StudentAveraging(start_fraction=0.0, lr_mode="peak")
    module = tiny.method("FineTuning", learning_rate=0.05)
    trainer = fit(
        module,
        max_epochs=3,
        enable_checkpointing=True,
        callbacks=[callback, record, best],
    )
    trainer.save_checkpoint(folder / "end.ckpt")
    assert best.best_model_score is not None
    return trainer, module, folder, record, float(best.best_model_score)


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["none", "average", "raw"])
def test_this_process_and_another_evaluate_a_checkpoint_alike(written, kept) -> None:  # C8
    trainer, module, folder, _, best = written
    path = folder / "best.ckpt"
    words = [sys.executable, "-c", EVALUATE, str(path), kept]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    accuracy, total = map(float, run.stdout.splitlines()[-1].split())
    (callback,) = [c for c in trainer.callbacks if isinstance(c, StudentAveraging)]
    callback.weights = "raw" if kept == "raw" else "average"
    try:
        data = TinyData(module.task)
        (metrics,) = trainer.validate(module, data, ckpt_path=path, verbose=False)
    finally:
        callback.weights = "average"
    assert metrics["val/accuracy"] == pytest.approx(accuracy, abs=0)
    assert module.student.classifier.weight.double().sum().item() == total
    if kept != "raw":
        assert accuracy == pytest.approx(best)


def test_the_two_networks_of_a_checkpoint_differ(written) -> None:
    checkpoint = AtomicCheckpointIO().load_checkpoint(written[2] / "best.ckpt")
    other = checkpoint["student_averaging"]["student"]["other"]
    same = [n for n, raw in other.items() if torch.equal(raw, checkpoint["state_dict"][n])]
    assert len(other) > 10
    assert len(same) < 3  # a gradient may be zero


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_saved_after_the_training_it_is_the_average_and_goes_on_from_the_raw(written) -> None:
    _, _, folder, record, _ = written
    path = folder / "end.ckpt"
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    mean = torch.stack([raw["student.classifier.weight"] for raw in record.raw]).mean(0)
    assert torch.allclose(checkpoint["state_dict"]["student.classifier.weight"], mean, atol=1e-6)

    class First(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.seen = weights(pl_module)

    module, first = tiny.method("FineTuning", learning_rate=0.05, seed=4), First()
    callback = StudentAveraging(start_fraction=0.0, lr_mode="peak")
    fit(module, max_epochs=4, callbacks=[callback, first], ckpt_path=path)
    assert differing(first.seen, record.raw[-1]) == []
    assert callback.num_averaged == 12


def test_a_loaded_module_is_the_average(tmp_path) -> None:
    module = Counter(batches=2)
    writes = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = fit_counter(module, averaging(), writes, max_epochs=2, enable_checkpointing=True)
    for epoch, value in enumerate((1.5, 2.5)):
        path = tmp_path / f"epoch={epoch}.ckpt"
        assert Counter.load_from_checkpoint(path).value == value
        module.validated.clear()
        trainer.test(module, ckpt_path=path, verbose=False)
        assert module.validated == [value]


def test_a_file_holds_one_extra_copy_of_the_student_and_no_teacher(tmp_path) -> None:
    sizes = []
    for callbacks in ([], [StudentAveraging(start_fraction=0.0)]):
        module = tiny.method("VanillaKD")
        assert isinstance(module, VanillaKD)
        assert module.teacher is not None
        folder = tmp_path / str(len(callbacks))
        fit(module, folder=folder, callbacks=callbacks)
        checkpoint = AtomicCheckpointIO().load_checkpoint(folder / "step=4.ckpt")
        sizes.append(sum(t.numel() for t in tensors_in(checkpoint)))
        taught = {tuple(p.flatten().tolist()) for p in module.teacher.module.parameters()}
        held = {tuple(t.flatten().tolist()) for t in tensors_in(checkpoint) if t.numel() > 4}
        assert not {row for row in taught if len(row) > 4 and len(set(row)) > 1} & held
    student = sum(p.numel() for p in tiny.method("VanillaKD").student.parameters())
    assert sizes[1] - sizes[0] == student


def test_each_phase_has_an_average_of_its_own_and_the_next_starts_from_it(tmp_path) -> None:
    module = tiny.method("AnnealingKD", learning_rate=0.01)
    assert isinstance(module, AnnealingKD)
    made: list[tuple[StudentAveraging, dict[str, torch.Tensor]]] = []

    class Begin(L.Callback):
        def on_train_start(self, trainer, pl_module):
            made[-1][1].update(weights(pl_module))

    def trainer_for(phase, folder):
        callback = StudentAveraging(start_fraction=0.0, lr_mode="peak")
        made.append((callback, {}))
        writes = {"dirpath": folder, "enable_version_counter": False}
        return tiny.trainer(
            callback,
            Begin(),
            ModelCheckpoint(filename="best", monitor=module.monitor, mode="max", **writes),
            ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **writes),
            max_epochs=phase.max_epochs,
            enable_checkpointing=True,
        )

    fit_phases(module, TinyData(module.task), tmp_path, trainer_for)
    assert [callback.num_averaged for callback, _ in made] == [9, 6]
    best = torch.load(tmp_path / "checkpoints/teacher/best.ckpt", weights_only=True)
    begun = made[1][1]
    assert all(torch.equal(begun[name], value) for name, value in best["state_dict"].items())


def test_of_a_nested_adapter_the_factors_are_averaged_and_every_size_is_validated() -> None:
    module, record = tiny.filled(tiny.method("DyLoRA", learning_rate=0.05)), Record()
    callback = StudentAveraging(start_fraction=0.0)
    trainer = fit(module, max_epochs=2, callbacks=[callback, record])
    name = next(name for name in record.raw[0] if "lora_B" in name)
    mean = torch.stack([raw[name] for raw in record.raw]).mean(0)
    assert torch.allclose(module.get_parameter(name), mean, atol=1e-6)
    assert callback.mean is not None
    assert {n.rpartition(".")[2] for n in callback.mean.average} == {
        "lora_A", "lora_B", "weight", "bias"
    }  # fmt: skip
    assert [f"val/rank_{r}/accuracy" in trainer.callback_metrics for r in range(1, 5)] == [True] * 4


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_it_joins_a_run_that_began_without_it(tmp_path) -> None:
    fit(tiny.method("FineTuning"), folder=tmp_path, max_steps=6)
    module, callback = tiny.method("FineTuning"), StudentAveraging(start_fraction=0.5)
    fit(module, ckpt_path=tmp_path / "step=2.ckpt", max_steps=6, callbacks=[callback])
    assert (callback.updates, callback.num_averaged) == (6, 3)


def test_what_is_not_finite_is_not_written(tmp_path) -> None:
    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                pl_module.weight.data.fill_(torch.nan)

    writes = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(
        FloatingPointError, match=r"weight student.weight is not finite .* update 2"
    ):
        fit_counter(Counter(4), averaging(), Spoil(), writes, enable_checkpointing=True)
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["step=1.ckpt"]
