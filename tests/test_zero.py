"""ZeRO on two CPU processes: one process's weights, metrics, checkpoints and refusals."""

from importlib.util import find_spec

import pytest
import torch

from lightning_kd.checkpoint_io import AtomicCheckpointIO
from lightning_kd.methods import DyLoRA
from tests import tiny
from tests.conformance.matrix import tensors_in, weights
from tests.kill import ROOT, run_to_end
from tests.run_zero_pair import STAGES, TRAINED, WRITTEN, method, train, train_phases

pytestmark = [
    pytest.mark.ddp,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]
every_training = pytest.mark.parametrize("name", TRAINED)
every_stage = pytest.mark.parametrize("stage", STAGES)

TOLERANCE = 1e-6
"""Single precision; what is equal differs by 1e-8."""


def difference(left, right) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where one process, and then two, have trained."""
    folder = tmp_path_factory.mktemp("zero")
    alone = {name: train(name, None, folder / f"{name} None") for name in TRAINED}
    alone["phases"] = train_phases(None, folder / "phases None")
    torch.save(alone, folder / "alone.pt")
    run_to_end([ROOT / "tests/run_zero_pair.py", folder], timeout=380)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return torch.load(folder / "alone.pt")


@pytest.fixture(scope="module")
def pair(folder):
    """What each of the two processes found."""
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@every_stage
@every_training
def test_two_processes_give_the_weights_and_metrics_of_one_with_twice_the_batch(
    name, stage, pair, alone
) -> None:
    first, second = (found[f"{name} {stage}"] for found in pair)
    assert difference(first["weights"], second["weights"]) == 0
    assert difference(first["weights"], alone[name]["weights"]) < TOLERANCE
    assert difference(first["weights"], weights(method(name))) > 1e-3
    validated = [key for key in alone[name]["metrics"] if key.startswith("val/")]
    assert validated
    for key in validated:
        assert first["metrics"][key] == pytest.approx(alone[name]["metrics"][key], abs=TOLERANCE)


@every_stage
def test_a_training_in_phases_ends_with_the_weights_of_one_process(
    stage, pair, alone, folder
) -> None:
    first, second = (found[f"phases {stage}"] for found in pair)
    assert difference(first, second) == 0
    assert difference(first, alone["phases"]) < TOLERANCE
    untrained = weights(method("AnnealingKD", label_epochs=1))
    assert difference(first, untrained) > 1e-3
    ours, theirs = (folder / f"phases {which}" for which in (stage, None))
    files = sorted(str(file.relative_to(ours)) for file in ours.rglob("*.ckpt"))
    assert files == sorted(str(file.relative_to(theirs)) for file in theirs.rglob("*.ckpt"))
    assert len(files) == 5
    for file in files:
        written, expected = (read(root / file)["state_dict"] for root in (ours, theirs))
        assert difference(written, expected) < TOLERANCE


def read(file):
    assert file.is_file()
    return AtomicCheckpointIO().load_checkpoint(file)


@every_stage
@every_training
def test_a_checkpoint_is_the_file_that_one_process_writes(name, stage, folder) -> None:
    ours, theirs = (read(folder / f"{name} {w}/step={WRITTEN}.ckpt") for w in (stage, None))
    assert ours.keys() == theirs.keys()
    assert difference(ours["state_dict"], theirs["state_dict"]) < TOLERANCE
    (mine,), (other,) = ours["optimizer_states"], theirs["optimizer_states"]
    assert [g["params"] for g in mine["param_groups"]] == [
        g["params"] for g in other["param_groups"]
    ]
    assert [g["lr"] for g in mine["param_groups"]] == [g["lr"] for g in other["param_groups"]]
    assert mine["state"].keys() == other["state"].keys()
    for number in mine["state"]:
        assert difference(mine["state"][number], other["state"][number]) < TOLERANCE
        assert mine["state"][number]["step"] == WRITTEN
    for key in ("frozen_fingerprint", "dropout_seed", "global_step", "lr_schedulers"):
        assert ours.get(key) == theirs.get(key)


@every_stage
def test_the_teacher_is_in_no_file(stage, folder) -> None:
    teacher = tiny.taught(tiny.TASKS["classification"])["teacher"]
    hidden = [p for p in teacher.parameters() if p.dim() > 1]  # vectors start as zeros or ones
    files = list((folder / f"phases {stage}").rglob("*.ckpt"))
    assert files
    for file in files:
        written = read(file)
        assert all(name.startswith("student.") for name in written["state_dict"])
        for tensor in tensors_in(written):
            assert not any(torch.equal(tensor, other) for other in hidden)


@every_stage
def test_an_adapter_is_loaded_from_it(stage, folder) -> None:
    file = folder / f"DyLoRA {stage}/step={WRITTEN}.ckpt"
    student = tiny.model("bert")
    module = DyLoRA.load_from_checkpoint(file, student=student, task=tiny.TASKS["classification"])
    written = read(file)["state_dict"]
    assert all(torch.equal(module.state_dict()[name], value) for name, value in written.items())
    assert set(written) == {name for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.filterwarnings("ignore:Be aware that when using")  # of checkpoints it writes none
def test_any_number_of_processes_and_any_stage_go_on_with_a_checkpoint(pair, alone, folder) -> None:
    for found in pair:
        resumed = found["from one process"]["weights"]
        assert difference(resumed, alone["FineTuning"]["weights"]) < TOLERANCE
        resumed = found["from 3 to 2"]["weights"]
        assert difference(resumed, alone["DyLoRA"]["weights"]) < TOLERANCE
    third = folder / f"DyLoRA 3/step={WRITTEN}.ckpt"
    one = train("DyLoRA", None, resume=third)
    assert difference(one["weights"], alone["DyLoRA"]["weights"]) < TOLERANCE


def test_in_half_precision_the_fp32_weights_behind_are_the_ones_that_are_kept(
    pair, alone, folder
) -> None:
    straight, resumed = pair[0]["half"]["weights"], pair[0]["half, resumed"]["weights"]
    assert not [v for v in straight.values() if v.is_floating_point() and v.dtype != torch.float32]
    state = read(folder / f"half/step={WRITTEN}.ckpt")["state_dict"]
    assert any(not torch.equal(value, value.bfloat16().float()) for value in state.values())
    assert 1e-6 < difference(straight, alone["FineTuning"]["weights"]) < 1e-2
    assert difference(straight, resumed) < TOLERANCE


@pytest.mark.parametrize(
    ("what", "reason", "way_out"),
    [
        ("strict", "hides the components", "optimizer_semantics dense"),
        ("row-wise", "NestedAdamW may need them whole", "use AdamW"),
        ("quantized", "cannot distribute extra, which is quantized", "use stage 2"),
        ("manual", "with two optimizers", "use the ddp strategy"),
    ],
)
def test_what_zero_cannot_do_is_refused_before_training(what, reason, way_out, pair) -> None:
    for found in pair:
        assert reason in found["refusals"][what]
        assert way_out in found["refusals"][what]
