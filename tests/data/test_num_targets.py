"""How many tokens an optimizer step averages over, however it is cut."""

from typing import Any

import lightning as L
import pytest
import torch

from lightning_kd.data import Instructions
from lightning_kd.data.batches import ResumableLoader, ShardedBatches
from lightning_kd.methods import FineTuning
from lightning_kd.models import load_model
from lightning_kd.progress import check_whole_step
from lightning_kd.tasks import CausalLM
from tests import tiny, tiny_texts

TARGETS = [(3 * i) % 7 for i in range(23)]
TASK = CausalLM("alpaca")


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("epoch", [0, 3])
def test_the_mean_over_processes_and_micro_batches_of_what_they_have(replicas, epoch) -> None:
    parts = [
        ShardedBatches(23, 4, num_replicas=replicas, rank=r, shuffle=True, targets=TARGETS)
        for r in range(replicas)
    ]
    size = len(parts[0])
    for window in (1, 2, 3):
        for first in range(0, size, window):
            last = min(first + window, size)
            counts = [
                sum(TARGETS[i] for i in batch)
                for part in parts
                for batch in part.batches(epoch)[first:last]
            ]
            assert len(counts) == replicas * (last - first)
            for part in parts:
                found = part.num_targets(epoch, first, last)
                assert found == pytest.approx(sum(counts) / len(counts))


def test_a_step_without_any_target_has_no_average() -> None:
    sampler = ShardedBatches(4, 2, shuffle=True, targets=[0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"batches 1 to 1 of epoch 2 have no token.*max_length"):
        sampler.num_targets(2, 1, 2)
    with pytest.raises(ValueError, match="not known; give targets"):
        ShardedBatches(4, 2, shuffle=True).num_targets(0, 0, 1)


def test_a_loader_without_trainer_takes_each_batch_for_a_step() -> None:
    sampler = ShardedBatches(23, 4, shuffle=True, targets=TARGETS)
    rows = _Rows()
    for batch in ResumableLoader(rows, batch_size=None, sampler=sampler):
        assert batch["num_targets"] == sum(TARGETS[i] for i in batch["idx"].tolist())


class _Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 23

    def __getitem__(self, indices: list[int]) -> dict[str, Any]:
        return {"idx": torch.tensor(indices)}


class Watch(L.Callback):
    """What each batch was told, and what it has."""

    def __init__(self) -> None:
        self.told: list[float] = []
        self.have: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.told.append(float(batch["num_targets"]))
        self.have.append(int((batch["labels"][:, 1:] != -100).sum()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    for name in ("train", "dev", "test"):
        tiny_texts.write_json(folder / f"{name}.json", tiny_texts.alpaca_rows(18))
    tiny_texts.byte_tokenizer(folder / "bytes")
    return folder


def train(folder, data_options, **options):
    data = Instructions(
        "reviews", str(folder / "bytes"), str(folder), max_length=96, chat_template="never",
        prompt_template="{instruction}", cache_dir=str(folder / "cache"), **data_options,
    )  # fmt: skip
    torch.manual_seed(0)
    model = load_model(
        tiny.config("llama", vocab_size=tiny_texts.BYTES, max_position_embeddings=96), TASK
    ).double()
    module = FineTuning(model, TASK, learning_rate=0.01, lr_schedule="constant")
    watch = Watch()
    options = {"max_epochs": 2, "limit_val_batches": 0, **options}
    tiny.trainer(watch, precision="64-true", **options).fit(module, datamodule=data)
    return watch, torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_window_is_told_its_mean_also_where_the_epoch_or_a_limit_cuts_it(folder) -> None:
    for limit, sizes in ((1.0, [2, 2, 1] * 2), (3, [2, 1] * 2)):
        watch, _ = train(
            folder, {"batch_size": 4}, accumulate_grad_batches=2, limit_train_batches=limit
        )
        assert len(watch.told) == sum(sizes)
        first = 0
        for size in sizes:
            window = slice(first, first + size)
            mean = sum(watch.have[window]) / size
            assert watch.told[window] == pytest.approx([mean] * size)
            first += size


def test_steps_are_the_same_in_one_piece_or_in_several(folder) -> None:
    """Of 18 examples in steps of 8: the epoch's last step is one of two."""
    _, whole = train(folder, {"batch_size": 8})
    for parts in (2, 4):
        _, cut = train(folder, {"batch_size": 8 // parts}, accumulate_grad_batches=parts)
        torch.testing.assert_close(cut, whole, rtol=1e-7, atol=1e-9)


def test_packed_steps_are_those_of_the_same_texts_apart(folder) -> None:
    """All in one step, so that both see the same."""
    apart, one = train(folder, {"batch_size": 18}, max_epochs=3)
    packed, other = train(folder, {"batch_size": 18, "packing": True}, max_epochs=3)
    assert apart.told == packed.told
    assert len(apart.told) == 3
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)  # losses are float32


def test_other_people_s_batches_make_whole_steps_only() -> None:
    for options in ({}, {"accumulate_grad_batches": 2}):
        trainer = tiny.trainer(max_epochs=1, limit_val_batches=0, **options)
        if not options:
            check_whole_step(trainer)
            continue
        with pytest.raises(ValueError, match=r"2 micro-batches.*or put num_targets"):
            check_whole_step(trainer)
        module, data = FineTuning(tiny.model("llama", TASK), TASK), tiny.loader(8, task=TASK)
        with pytest.raises(ValueError, match="2 micro-batches"):
            trainer.fit(module, data, data)
