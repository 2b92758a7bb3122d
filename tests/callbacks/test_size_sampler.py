"""The law of the draw, and that it is a function of (seed, optimizer step) on real Trainer runs."""

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.callbacks import SizeSampler, size_probabilities
from lightning_kd.nested import Nested
from tests import tiny

DRAWS = 8_000  # the spec asks for 80,000; those are in the slow lane
GEOMETRIC = [0.502, 0.251, 0.125, 0.0627, 0.0314, 0.0157, 0.0078, 0.0039]  # the spec's table


class Module(L.LightningModule, Nested):
    """Anyone's nested module; writes down the size of each of its batches."""

    size_name = "width"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))
        self.seen: list[tuple[int, int]] = []
        self.width = 8

    @property
    def sizes(self) -> range:
        return range(1, 9)

    @property
    def size(self) -> int:
        return self.width

    def resize(self, size: int) -> None:
        self.width = size

    def training_step(self, batch, batch_idx):
        self.seen.append((self.trainer.global_step, self.width))
        return (self.weight[: self.width].sum() - batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(10, 1)))


def chi_square(counts: np.ndarray, probabilities: list[float]) -> float:
    expected = counts.sum() * np.array(probabilities)
    return float(((counts - expected) ** 2 / expected).sum())


def drawn(sampler: SizeSampler, count: int = DRAWS) -> np.ndarray:
    sizes = [sampler.draw(step) for step in range(count)]
    return np.array([sizes.count(size) for size in sampler.sizes])


def test_uniform_draws_pass_the_chi_square_test() -> None:  # A10, p = 0.001
    sampler = SizeSampler(range(1, 9))
    assert chi_square(drawn(sampler), [1 / 8] * 8) < 24.32


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [range(1, 9), [1, 2, 4, 8, 16, 32, 64]])
def test_eighty_thousand_draws_pass_the_chi_square_test(sizes) -> None:  # A10, as in the spec
    bound = {8: 24.32, 7: 22.46}[len(sizes)]
    assert chi_square(drawn(SizeSampler(sizes), 80_000), [1 / len(sizes)] * len(sizes)) < bound


def test_geometric_draws_pass_the_chi_square_test_against_the_table() -> None:  # A10
    assert chi_square(drawn(SizeSampler(range(1, 9), "geometric")), GEOMETRIC) < 24.32


def test_a_list_is_drawn_from_uniformly() -> None:  # A10
    sampler = SizeSampler([1, 2, 4, 8, 16, 32, 64])
    assert chi_square(drawn(sampler), [1 / 7] * 7) < 22.46


def test_the_laws_are_the_published_ones() -> None:
    assert size_probabilities(range(4)) == [0.25] * 4
    assert size_probabilities(range(8), "geometric") == pytest.approx(GEOMETRIC, rel=0.01)
    assert size_probabilities(range(3), "geometric", 1.0) == [1, 0, 0]
    assert size_probabilities(range(3), "geometric", 1e-9) == pytest.approx([1 / 3] * 3)
    third = size_probabilities(range(2), "geometric", 1 / 3)
    assert third == pytest.approx([0.6, 0.4])


def test_another_seed_is_another_sequence_also_shifted() -> None:
    one, two = (SizeSampler(range(1, 9), seed=seed) for seed in (0, 1))
    first = [one.draw(step) for step in range(40)]
    assert first == [one.draw(step) for step in range(40)]
    for shift in range(3):
        assert first[shift : shift + 30] != [two.draw(step) for step in range(30)]


def test_processes_agree_in_global_mode_and_not_in_the_other() -> None:
    both = SizeSampler(range(1, 9))
    own = SizeSampler(range(1, 9), sync="per_process")
    steps = range(40)
    assert [both.draw(s, 0) for s in steps] == [both.draw(s, 1) for s in steps]
    assert [own.draw(s, 0) for s in steps] != [own.draw(s, 1) for s in steps]
    assert [own.draw(s, 1) for s in steps] == [own.draw(s, 1) for s in steps]


def test_drawing_disturbs_no_global_generator() -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    SizeSampler(range(1, 9)).draw(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state()) == str(numpy_state)  # noqa: NPY002


def test_draws_once_per_optimizer_step_and_shares_it_among_micro_batches() -> None:  # A11
    module, sampler = Module(), SizeSampler(range(1, 9))
    tiny.trainer(sampler, accumulate_grad_batches=4, max_epochs=4).fit(module)
    assert len(module.seen) == 40
    steps = [step for step, _ in module.seen]
    # ten batches per epoch: windows of four, four and two
    assert steps == [3 * e + w for e in range(4) for w in (0, 0, 0, 0, 1, 1, 1, 1, 2, 2)]
    assert [size for _, size in module.seen] == [sampler.draw(step) for step in steps]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended:UserWarning")
def test_a_resumed_run_goes_on_with_the_same_sizes(tmp_path) -> None:  # A12
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 13:
                trainer.save_checkpoint(tmp_path / "some.ckpt")

    whole, resumed = Module(), Module()
    tiny.trainer(SizeSampler(range(1, 9)), Save()).fit(whole)
    tiny.trainer(SizeSampler(range(1, 9))).fit(resumed, ckpt_path=tmp_path / "some.ckpt")
    assert resumed.seen == whole.seen[13:]
    assert torch.equal(resumed.weight, whole.weight)


def test_has_no_state_to_save() -> None:
    assert SizeSampler([1]).state_dict() == {}


def test_logs_the_size_under_its_name_and_in_the_bar() -> None:
    bars: list[dict[str, float]] = []

    class Logged(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            bars.append(dict(trainer.progress_bar_metrics))

    module = Module()
    tiny.trainer(SizeSampler(range(1, 9)), Logged(), max_epochs=1).fit(module)
    assert [bar["train/width"] for bar in bars] == [size for _, size in module.seen]


def test_a_module_without_sizes_is_told_what_it_lacks() -> None:
    class Plain(L.LightningModule):
        pass

    message = "Nested, Plain is not; give it sizes and resize"
    with pytest.raises(TypeError, match=message):
        SizeSampler([1]).on_train_batch_start(tiny.trainer(), Plain(), None, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": []}, "sizes is empty"),
        ({"sync": "local"}, "sync must be global or per_process, got 'local'"),
        ({"distribution": "zipf"}, "distribution must be uniform or geometric, got 'zipf'"),
        ({"distribution": "geometric", "geometric_p": 0.0}, "geometric_p must be above 0 .* got 0"),
        ({"distribution": "geometric", "geometric_p": 1.5}, "geometric_p must be .* got 1.5"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        SizeSampler(**{"sizes": [1, 2], **changes})


def test_after_training_the_module_is_at_the_largest_size() -> None:
    module = Module()
    settings = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        enable_model_summary=False,
        callbacks=[SizeSampler([1, 5])],
        **settings,  # type: ignore[arg-type]
    )
    module.resize(3)
    trainer.fit(module)
    assert module.size == 5
