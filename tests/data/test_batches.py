"""Batches are a function of (seed, epoch), shared by processes, and resumable."""

from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.data.batches import ResumableLoader, ShardedBatches

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4))


def shards(n: int, b: int, replicas: int, **options: Any) -> list[list[list[int]]]:
    return [
        list(ShardedBatches(n, b, num_replicas=replicas, rank=r, **options))
        for r in range(replicas)
    ]


@given(SIZES, st.booleans())
def test_training_uses_every_example_once_but_for_the_cut(size, group) -> None:
    n, b, replicas = size
    if n < replicas:
        return
    lengths = [(7 * i) % 5 for i in range(n)] if group else None
    parts = shards(n, b, replicas, shuffle=True, lengths=lengths)
    seen = Counter(i for part in parts for batch in part for i in batch)
    assert set(seen.values()) == {1}
    assert len(seen) == n - n % replicas
    for at_once in zip(
        *parts, strict=True
    ):  # equal sizes: mean over processes = mean over examples
        assert len({len(batch) for batch in at_once}) == 1
        assert 1 <= len(at_once[0]) <= b


@given(SIZES)
def test_evaluation_uses_every_example_once_in_equally_many_batches(size) -> None:
    n, b, replicas = size
    if n < replicas:
        return
    parts = shards(n, b, replicas, lengths=[(7 * i) % 5 for i in range(n)])
    assert sorted(i for part in parts for batch in part for i in batch) == list(range(n))
    lens = [len(batch) for part in parts for batch in part]
    assert max(lens) - min(lens) <= 1
    assert min(lens) >= 1
    assert max(lens) <= max(b, 2)
    sampler = ShardedBatches(n, b, num_replicas=replicas)
    assert {len(part) for part in parts} == {len(sampler)}


@pytest.mark.parametrize("lengths", [None, list(range(24))])
def test_two_processes_see_what_one_sees_at_twice_the_batch(lengths) -> None:
    one = shards(24, 6, 1, shuffle=True, lengths=lengths)[0]
    left, right = shards(24, 3, 2, shuffle=True, lengths=lengths)
    assert [sorted(a + b) for a, b in zip(left, right, strict=True)] == [sorted(k) for k in one]


def test_order_is_a_function_of_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return ShardedBatches(20, 4, shuffle=True, seed=seed).batches(epoch)

    assert order(3, 5) == order(3, 5)
    different = {str(order(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(different) == 16  # seed + epoch alone would give 7


def test_evaluation_order_is_by_length() -> None:
    batches = list(ShardedBatches(4, 2, lengths=[9, 1, 8, 2]))
    assert batches == [[1, 3], [2, 0]]


def test_grouping_by_length_saves_padding_and_stays_random() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 100, (3000,), generator=generator)

    def padded(sampler: ShardedBatches) -> int:
        return sum(len(b) * int(lengths[b].max()) for b in sampler)

    plain = ShardedBatches(3000, 16, shuffle=True)
    grouped = ShardedBatches(3000, 16, shuffle=True, lengths=lengths.tolist())
    assert padded(grouped) < 1.1 * int(lengths.sum()) < 0.65 * padded(plain)
    assert grouped.batches(0) != grouped.batches(1)
    means = [float(lengths[b].float().mean()) for b in grouped]
    assert means != sorted(means)
    assert [len(b) for b in grouped][-1] == 3000 % 16  # the short batch stays last


@pytest.mark.parametrize("shuffle", [True, False])
def test_fewer_examples_than_processes_is_an_error(shuffle) -> None:
    with pytest.raises(ValueError, match=r"3 example.*4 processes"):
        ShardedBatches(3, 2, num_replicas=4, shuffle=shuffle)


def test_batch_size_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ShardedBatches(3, 0)


class Recorder(L.LightningModule):
    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.num_workers = num_workers

    def training_step(self, batch: Any) -> torch.Tensor:
        self.seen.append(batch.tolist())
        return (self.weight * batch.float().sin()).mean() + (self.weight - 1).square().sum()

    def validation_step(self, batch: Any) -> None:
        self.log("loss", self.weight.sum())

    def predict_step(self, batch: Any) -> Any:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(
            torch.arange(19),
            batch_size=None,
            sampler=ShardedBatches(19, 4, shuffle=True),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.arange(2)))


class SaveEverywhere(L.Callback):
    """A checkpoint at every point where `ModelCheckpoint` may write one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[tuple[Path, int, str]] = []

    def save(self, trainer: L.Trainer, module: Recorder, where: str) -> None:
        if not trainer.sanity_checking:
            path = self.folder / f"{len(self.saved)}.ckpt"
            trainer.save_checkpoint(path)
            self.saved.append((path, len(module.seen), where))

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.save(trainer, pl_module, "step")

    def on_validation_batch_end(self, trainer, pl_module, *_) -> None:
        self.save(trainer, pl_module, "inside validation")

    def on_validation_end(self, trainer, pl_module) -> None:
        self.save(trainer, pl_module, "validation")

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.save(trainer, pl_module, "epoch")


def quiet(**options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"limit_val_batches": 0},
        {},
        {"val_check_interval": 2},
        {"accumulate_grad_batches": 2},
        {"limit_train_batches": 3},
    ],
    ids=str,
)
def test_a_resumed_run_sees_the_rest_of_the_batches(tmp_path, options) -> None:
    save = SaveEverywhere(tmp_path)
    whole = Recorder()
    quiet(callbacks=[save], **options).fit(whole)
    assert len(whole.seen) == 2 * options.get("limit_train_batches", 5)
    assert len(save.saved) >= len(whole.seen)
    for path, used, where in save.saved:
        rest = Recorder()
        quiet(**options).fit(rest, ckpt_path=path, weights_only=True)
        assert rest.seen == whole.seen[used:], where
        stepped = used % 5 % options.get("accumulate_grad_batches", 1) == 0
        if stepped:  # Lightning does not save gradients that are being accumulated
            assert torch.equal(rest.weight, whole.weight), where


@pytest.mark.slow
def test_resuming_is_exact_with_loader_workers(tmp_path) -> None:
    save = SaveEverywhere(tmp_path)
    whole = Recorder(num_workers=2)
    quiet(callbacks=[save], limit_val_batches=0).fit(whole)
    for path, used, where in save.saved:
        rest = Recorder(num_workers=2)
        quiet(limit_val_batches=0).fit(rest, ckpt_path=path, weights_only=True)
        assert rest.seen == whole.seen[used:], where


def loader(start: dict[str, int] | None = None) -> ResumableLoader:
    made = ResumableLoader(
        torch.arange(10), batch_size=None, sampler=ShardedBatches(10, 4, shuffle=True)
    )
    if start is not None:
        made.load_state_dict(start)
    return made


def test_length_is_that_of_the_whole_epoch_also_after_resuming() -> None:
    resumed = loader({"epoch": 0, "batch": 2})
    assert len(resumed) == 3
    assert len(list(resumed)) == 1
    assert len(list(resumed)) == 3


def test_state_counts_batches_handed_out() -> None:
    made = loader()
    assert made.state_dict() == {"epoch": 0, "batch": 0}
    iterator = iter(made)
    next(iterator)
    next(iterator)
    assert made.state_dict() == {"epoch": 0, "batch": 2}


def test_a_finished_epoch_resumes_with_the_next_one() -> None:
    resumed = loader({"epoch": 0, "batch": 3})
    second = ShardedBatches(10, 4, shuffle=True).batches(epoch=1)
    assert [batch.tolist() for batch in resumed] == second
    assert resumed.state_dict() == {"epoch": 1, "batch": 3}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 on torch 2.13
@pytest.mark.filterwarnings("ignore:.*batch indices:UserWarning")
def test_predicting_over_the_resumable_loader_works() -> None:
    batches = quiet().predict(Recorder(), loader())
    assert batches is not None
    assert sorted(int(i) for batch in batches for i in batch) == list(range(10))


def test_overfit_batches_is_answered_with_the_way_out() -> None:
    trainer = quiet(overfit_batches=2)
    with (
        pytest.warns(UserWarning, match="turning off"),
        pytest.raises(TypeError, match=r"--data\.limit_examples"),
    ):
        trainer.fit(Recorder())
