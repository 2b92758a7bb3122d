"""A trajectory on disk: read back bit for bit, and refused when anything is wrong with it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_kd.trajectory import TeacherTrajectory
from tests.trajectories import recorded

STATES = [
    {"w": torch.randn(2, 3, generator=torch.Generator().manual_seed(j)), "seen": torch.tensor(j)}
    for j in range(3)
]


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(recorded(tmp_path / "path", *STATES, labels=("no", "yes")))


def change(folder: Path, edit) -> None:
    """Edit the index by hand."""
    index = json.loads((folder / "index.json").read_text())
    edit(index)
    (folder / "index.json").write_text(json.dumps(index))


def refused(folder: Path, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        TeacherTrajectory.read(folder).verify()


def test_it_is_read_as_it_was_recorded(folder) -> None:
    path = TeacherTrajectory.read(folder)
    path.verify(["No", "Yes"])
    assert [(c.j, c.epoch, c.step, c.metric) for c in path.checkpoints] == [
        (1, 0, 10, None),
        (2, 1, 20, None),
        (3, 2, 30, None),
    ]
    for checkpoint, state in zip(path.checkpoints, STATES, strict=True):
        found = path.weights(checkpoint)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)
        assert found["seen"].dtype == torch.int64


def test_tied_weights_and_views_are_kept(tmp_path) -> None:
    weight = torch.randn(4, 4)
    state = {"a": weight, "b": weight, "c": weight.t()[:2]}
    path = TeacherTrajectory.read(recorded(tmp_path, state))
    found = path.weights(path.checkpoints[0])
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_7_one_damaged_byte_is_noticed(place, folder) -> None:
    file = folder / "checkpoint_0002.safetensors"
    content = bytearray(file.read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[place]] ^= 1
    file.write_bytes(content)
    refused(folder, r"checkpoint_0002.safetensors is not what was recorded \(SHA-256 .*damaged")


def test_7_a_missing_file_is_noticed(folder) -> None:
    (folder / "checkpoint_0003.safetensors").unlink()
    refused(folder, "checkpoint_0003.safetensors is missing, checkpoint 3 of 3", FileNotFoundError)


def test_a_folder_without_a_trajectory(tmp_path) -> None:
    refused(tmp_path, "is no trajectory, it has no index.json; record one", FileNotFoundError)
    (tmp_path / "index.json").write_text("{")
    refused(tmp_path, r"index.json is damaged \(.*record the trajectory anew")


def test_a_trajectory_that_has_not_begun(tmp_path) -> None:
    TeacherTrajectory(tmp_path, "run").write()
    refused(tmp_path, "has no checkpoint yet")


def test_another_format_is_refused(folder) -> None:
    change(folder, lambda index: index.update(format=2))
    refused(folder, "index.json has format 2, this version reads 1")


def swap_files(index: dict[str, Any]) -> None:
    index["checkpoints"][0], index["checkpoints"][1] = index["checkpoints"][1::-1]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap_files, "has checkpoint 2 .* in place 1; the order must be"),
        (lambda i: i["checkpoints"].pop(1), "has checkpoint 3 .* in place 2; the order must be"),
        (lambda i: i["checkpoints"][2].update(step=20), "of step 20 behind one of step 20"),
        (lambda i: i["checkpoints"][2].update(step=5), "of step 5 behind one of step 20"),
    ],
)
def test_checkpoints_out_of_order_are_refused(edit, message, folder) -> None:
    change(folder, edit)
    refused(folder, message)


def test_a_checkpoint_of_another_run_is_refused(folder, tmp_path) -> None:
    other = TeacherTrajectory(tmp_path / "other", "another run").recorded(
        STATES[1], epoch=1, step=20
    )
    name = "checkpoint_0002.safetensors"
    (folder / name).write_bytes((other.folder / "checkpoint_0001.safetensors").read_bytes())
    change(folder, lambda i: i["checkpoints"][1].update(sha256=other.checkpoints[0].sha256))
    refused(folder, f"{name} is of run another run, the trajectory of run by hand")


def test_a_checkpoint_of_another_network_is_refused(tmp_path) -> None:
    wide = {"w": torch.zeros(2, 4), "seen": torch.tensor(1)}
    folder = Path(recorded(tmp_path, STATES[0], wide))
    refused(folder, re.escape("(w: (2, 4) there, (2, 3) here); a trajectory is"))


def test_other_labels_or_another_order_are_refused_with_both(folder) -> None:
    path = TeacherTrajectory.read(folder)
    with pytest.raises(ValueError, match="has the labels no, yes, the student's are yes, no"):
        path.verify(["yes", "no"])
    with pytest.raises(ValueError, match=r"has the labels no, yes, the task has none; give"):
        path.verify([])


def test_a_network_that_does_not_fit_is_refused(folder) -> None:
    path = TeacherTrajectory.read(folder)
    path.check_network(STATES[0], "this")
    with pytest.raises(ValueError, match=r"does not fit the teacher \(bias: nothing there, \(3,\)"):
        path.check_network(nn.Linear(2, 3).state_dict(), "the teacher")


def test_the_last_of_those_that_qualify_is_always_chosen(tmp_path) -> None:
    path = TeacherTrajectory(tmp_path, "run", monitor="val/accuracy")
    for j, metric in enumerate([0.5, 0.6, 0.55, 0.8, 0.9]):
        path = path.recorded(STATES[0], epoch=j, step=j + 1, metric=metric)

    def chosen(*arguments: Any) -> list[int]:
        return [checkpoint.j for checkpoint in path.choose(*arguments)]

    assert chosen(None, 9) == [1, 2, 3, 4, 5]
    assert chosen(None, 3) == [1, 3, 5]
    assert chosen(2, 9) == [2, 5]
    assert chosen(None, 9, 0.6) == [2, 4, 5]
    with pytest.raises(ValueError, match=r"=4, but .* has 3 with val/accuracy of 0\.6 or more"):
        path.choose(4, 9, 0.6)
    with pytest.raises(ValueError, match=r"leaves out all .* whose best has val/accuracy=0\.9"):
        path.choose(None, 9, 0.95)


def test_checkpoints_that_were_not_validated_cannot_be_chosen_by_it(folder) -> None:
    with pytest.raises(ValueError, match=r"0001\.safetensors was recorded without validation"):
        TeacherTrajectory.read(folder).choose(None, 3, 0.5)
