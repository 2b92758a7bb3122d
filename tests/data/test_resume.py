"""A resumed fit sees the batches that were left, however its length was given."""

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_kd.methods import FineTuning
from tests import tiny
from tests.conformance.matrix import TinyData, trainer


class Seen(L.Callback):
    """Remembers which examples were in each training batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append(batch["idx"].tolist())


def seen(folder, ckpt_path=None, validate_with=None, **limits):
    task = tiny.TASKS["classification"]
    look, data = Seen(), TinyData(task)
    saving = ModelCheckpoint(
        folder, "{step}", every_n_train_steps=1, save_top_k=-1, enable_version_counter=False
    )
    run = trainer(callbacks=[look, saving], enable_checkpointing=True, **limits)
    module = FineTuning(tiny.model(), task)
    if validate_with is not None:
        run.validate(module, data, ckpt_path=validate_with, verbose=False)
    run.fit(module, data, ckpt_path=ckpt_path)
    return look.batches


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
@pytest.mark.parametrize(
    "limits",
    [
        {"max_steps": 6, "max_epochs": -1},
        {"max_epochs": 2},  # Lightning asks for the loader before it restores its position
        {"max_epochs": 2, "max_steps": 6},
    ],
)
@pytest.mark.parametrize("step", [1, 3, 4])
def test_resumed_it_sees_the_rest(step, limits, tmp_path) -> None:
    whole = seen(tmp_path, **limits)
    assert sorted(i for batch in whole[:3] for i in batch) == list(range(12))
    assert whole[:3] != whole[3:]
    assert seen(tmp_path, ckpt_path=tmp_path / f"step={step}.ckpt", **limits) == whole[step:]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
def test_evaluating_a_checkpoint_does_not_move_a_fit_that_begins(tmp_path) -> None:
    whole = seen(tmp_path, max_epochs=2)
    again = seen(tmp_path, validate_with=tmp_path / "step=1.ckpt", max_epochs=2)
    assert again == whole
