"""Averaging through a SIGKILL, in two processes, and with BatchNorm layers."""

import pytest
import torch

from tests.callbacks.counting import Record, averaging, fit
from tests.callbacks.run_averaging import LAST, METHODS, Normalized, train
from tests.conformance.matrix import differing, weights
from tests.kill import ROOT, run_to_end, run_until_killed

SCRIPT = ROOT / "tests" / "callbacks" / "run_averaging.py"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders of runs that were killed, each while averaging."""
    folder = tmp_path_factory.mktemp("killed")
    seen: dict[str, int] = {}

    def when(line: str) -> bool:
        name, _, step = line.partition(" step ")
        if step:
            seen[name] = int(step)
        return len(seen) == len(METHODS) and min(seen.values()) >= 7

    run_until_killed([SCRIPT, "kill", folder], when, timeout=150)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_it_ends_with_the_same_bits(name, killed, tmp_path) -> None:
    folder = killed / name
    assert not (folder / f"step={LAST}.ckpt").exists(), "it had ended before it was killed"
    last = max(int(p.stem.partition("=")[2]) for p in folder.glob("step=*.ckpt"))
    assert last > 4, "it was killed before averaging"
    module, resumed = train(name, folder, folder / f"step={last}.ckpt")
    straight, whole = train(name, tmp_path)
    assert differing(weights(straight), weights(module)) == [], f"killed at step {last}"
    assert resumed.mean is not None
    assert whole.mean is not None
    assert differing(whole.mean.raw, resumed.mean.raw) == []
    assert differing(whole.mean.average, resumed.mean.average) == []
    assert resumed.num_averaged == whole.num_averaged == LAST - 4


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_processes_have_the_same_average(tmp_path) -> None:
    run_to_end([SCRIPT, "pair", tmp_path], timeout=150)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys() == {*METHODS, "Normalized"}
    for name, found in first.items():
        assert differing(found["weights"], second[name]["weights"]) == [], name
        assert found["num"] == second[name]["num"]
    assert [first[name]["num"] for name in METHODS] == [4, 4]
    mean = first["Normalized"]["weights"]["student.0.running_mean"]  # of both processes' data
    assert mean.item() == pytest.approx(3, abs=0.1)


def test_statistics_are_those_of_the_data_in_validation_and_in_the_end() -> None:  # C12
    module = Normalized()
    fit(module, averaging(), max_epochs=2)
    assert module.forwards == 3 * 40  # a pass at each validation, and one in the end
    assert module.validated == pytest.approx([3.0, 3.0], abs=0.1)
    assert module.norm.running_mean is not None
    assert module.norm.running_var is not None
    assert module.norm.running_mean.item() == pytest.approx(3, abs=0.1)
    assert module.norm.running_var.item() == pytest.approx(4, abs=0.3)


def test_training_goes_on_with_its_own_statistics_and_random_numbers() -> None:
    ends = []
    for callbacks in ([], [averaging(lr_mode="none", weights="average")]):
        torch.manual_seed(5)
        module, record = Normalized(), Record()
        fit(module, *callbacks, record, max_epochs=2)
        ends.append(record.raw)
    assert len(ends[0]) == 80
    assert [differing(a, b) for a, b in zip(*ends, strict=True)] == [[]] * 80


def test_statistics_of_both_networks_are_in_a_checkpoint(tmp_path) -> None:
    module, callback = Normalized(), averaging()
    trainer = fit(module, callback)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    loaded = Normalized.load_from_checkpoint(tmp_path / "end.ckpt")
    assert differing(weights(loaded), weights(module)) == []
    other = torch.load(tmp_path / "end.ckpt", weights_only=True)["student_averaging"]["student"]
    assert other["other"]["student.0.running_mean"] != loaded.norm.running_mean
    assert other["other"]["student.0.num_batches_tracked"] == 40


def test_layer_norm_costs_no_forward_pass() -> None:  # C12
    class Plain(Normalized):
        def __init__(self) -> None:
            super().__init__()
            self.student = torch.nn.Sequential(torch.nn.LayerNorm(1), torch.nn.Linear(1, 1))

        def validation_step(self, batch, batch_idx):
            pass

    module = Plain()
    fit(module, averaging())
    assert module.forwards == 0
