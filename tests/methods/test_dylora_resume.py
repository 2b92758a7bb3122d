"""A run that was stopped goes on as if it had not been (check A12), on the real data module."""

import lightning as L
import pytest
import torch

from lightning_kd.checkpoint_io import AtomicCheckpointIO
from lightning_kd.data import GLUE
from lightning_kd.methods import DyLoRA
from tests import tiny

SLOW = pytest.mark.slow


class Watch(L.Callback):
    """Writes down the rank of every batch; saves after one of the optimizer steps."""

    def __init__(self, path=None, step: int = 0) -> None:
        self.path, self.step = path, step
        self.ranks: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.ranks.append(pl_module.size)
        if self.path is not None and trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.fixture
def folders(tmp_path):
    return {
        "tokenizer": str(tiny.tokenizer_folder(tmp_path / "tokenizer")),
        "data_dir": str(tiny.sst2_folder(tmp_path / "glue")),
        "cache_dir": str(tmp_path / "cache"),
    }


@pytest.mark.parametrize(
    ("settings", "accumulate", "step"),
    [
        ({}, 1, 5),
        ({"sampler": [1, 2, 4], "scaling": "alpha/R"}, 2, 3),
        pytest.param({"dropout": 0.25}, 1, 10, marks=SLOW),
        pytest.param({"update": "full", "optimizer_semantics": "dense"}, 1, 5, marks=SLOW),
        pytest.param({"evaluation": "sweep"}, 1, 12, marks=SLOW),
    ],
)
def test_resumed_it_draws_the_same_ranks_and_ends_with_the_same_bits(
    settings, accumulate, step, folders, tmp_path
) -> None:
    def run(watch: Watch, ckpt_path=None) -> DyLoRA:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # of the weights; the second run's generator stands elsewhere
            module = DyLoRA(
                tiny.model(), GLUE.tasks["sst2"], max_rank=4, learning_rate=0.01, **settings
            )
        trainer = tiny.trainer(
            watch, accumulate_grad_batches=accumulate, plugins=[AtomicCheckpointIO()]
        )
        data = GLUE("sst2", batch_size=4, **folders)  # eight batches per epoch
        trainer.fit(tiny.filled(module), data, ckpt_path=ckpt_path)
        return module

    path = tmp_path / "some.ckpt"
    whole, resumed = Watch(path, step), Watch()
    first, second = run(whole), run(resumed, path)
    assert len(set(whole.ranks)) > 1
    assert resumed.ranks == whole.ranks[step * accumulate :]
    for (name, mine), (_, other) in zip(
        first.named_parameters(), second.named_parameters(), strict=True
    ):
        assert torch.equal(mine, other), name
