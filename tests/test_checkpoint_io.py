"""Checkpoints appear whole or not at all: failing writers, a full disk, SIGKILL, damaged files."""

import errno
import os
import pickle
import resource
import textwrap
from collections import OrderedDict

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.checkpoint_io import AtomicCheckpointIO, write_atomically
from tests.kill import run_until_killed

WEIGHT = torch.arange(4.0)
OLD = {"state_dict": {"weight": WEIGHT}, "epoch": 3}


class NotAPlainValue:
    """Something weights_only refuses."""


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    return path


def test_round_trip_makes_folders_and_leaves_one_file(saved) -> None:
    loaded = AtomicCheckpointIO().load_checkpoint(saved)
    assert torch.equal(loaded["state_dict"]["weight"], WEIGHT)
    assert loaded["epoch"] == 3
    assert [p.name for p in saved.parent.iterdir()] == ["last.ckpt"]


def test_writes_beside_the_target_and_replaces_it_only_at_the_end(saved) -> None:
    before = saved.read_bytes()

    def write(file) -> None:
        file.write(b"new")
        file.flush()
        names = sorted(p.name for p in saved.parent.iterdir())
        assert names == ["last.ckpt", f"last.ckpt.tmp-{os.getpid()}"]
        assert saved.read_bytes() == before

    write_atomically(write, saved)
    assert saved.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("half-way"), KeyboardInterrupt()])
def test_a_writer_that_breaks_off_changes_nothing(saved, error) -> None:
    before = saved.read_bytes()

    def write(file) -> None:
        file.write(b"half of i")
        raise error

    with pytest.raises(type(error)) as caught:
        write_atomically(write, saved)
    assert caught.value is error
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["last.ckpt"]


def test_what_cannot_be_pickled_changes_nothing(saved) -> None:
    before = saved.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        AtomicCheckpointIO().save_checkpoint({"hook": lambda: None}, saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["last.ckpt"]


@pytest.fixture
def files_up_to_64_kib():
    """A limit of the operating system that stands for a full disk: write() fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("files_up_to_64_kib")
@pytest.mark.parametrize("size", [1 << 14, 1 << 20])  # in elements: just over, and far over
def test_disk_full_is_one_error_and_changes_nothing(saved, size) -> None:
    before = saved.read_bytes()
    with pytest.raises(OSError, match=r"cannot write .*last\.ckpt: File too large") as caught:
        AtomicCheckpointIO().save_checkpoint({"state_dict": torch.zeros(size)}, saved)
    assert caught.value.errno == errno.EFBIG
    assert "free space or choose another folder" in str(caught.value)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["last.ckpt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*/file/last\.ckpt"):
        AtomicCheckpointIO().save_checkpoint(OLD, tmp_path / "file" / "last.ckpt")


def test_left_overs_of_dead_processes_go_and_those_of_living_ones_stay(saved) -> None:
    dead, parent = 2**22 + 1, os.getppid()  # Linux gives no number above 2**22
    keep = [f"last.ckpt.tmp-{parent}", f"other.ckpt.tmp-{dead}", "last.ckpt.tmp-x"]
    for name in [*keep, f"last.ckpt.tmp-{dead}", "last.ckpt.tmp-" + "9" * 30]:
        (saved.parent / name).touch()
    AtomicCheckpointIO().save_checkpoint(OLD, saved)
    assert sorted(p.name for p in saved.parent.iterdir()) == sorted(["last.ckpt", *keep])


def test_a_process_of_somebody_else_is_alive(saved, monkeypatch) -> None:
    def refuse(pid, signal) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "kill", refuse)
    (saved.parent / "last.ckpt.tmp-1").touch()
    AtomicCheckpointIO().save_checkpoint(OLD, saved)
    assert (saved.parent / "last.ckpt.tmp-1").exists()


@pytest.mark.parametrize("keep", [0, 10, 300, -1])
def test_a_cut_off_file_is_named(saved, keep) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"last\.ckpt \([\d,]+ bytes\) is cut off or not a"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_a_damaged_file_is_named(saved) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content.replace(b"data.pkl", b"date.pkl"))
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_a_missing_file_is_a_missing_file(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "no.ckpt")


def test_reads_nothing_that_could_run_code_unless_asked(tmp_path) -> None:
    path = tmp_path / "pickle.ckpt"
    AtomicCheckpointIO().save_checkpoint({"object": NotAPlainValue()}, path)
    with pytest.raises(ValueError, match=r"pickle\.ckpt holds more than tensors .* weights_only"):
        AtomicCheckpointIO().load_checkpoint(path)
    with pytest.raises(ValueError, match="holds more than tensors"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert isinstance(loaded["object"], NotAPlainValue)


def test_loads_on_the_device_asked_for(saved) -> None:
    loaded = AtomicCheckpointIO().load_checkpoint(saved, map_location="meta")
    assert loaded["state_dict"]["weight"].device.type == "meta"


def test_addresses_and_storage_options_are_left_to_lightning(tmp_path) -> None:
    AtomicCheckpointIO().save_checkpoint(OLD, f"file://{tmp_path}/some.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(f"file://{tmp_path}/some.ckpt")["epoch"] == 3
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(OLD, tmp_path / "x.ckpt", storage_options={})


class Tiny(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(2, 2)))


def test_trainer_saves_and_resumes_through_it(tmp_path) -> None:
    def trainer(epochs) -> L.Trainer:
        return L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],
        )

    first, second, whole = Tiny(), Tiny(), Tiny()
    whole.load_state_dict(OrderedDict(first.state_dict()))
    one = trainer(1)
    one.fit(first)
    one.save_checkpoint(tmp_path / "one.ckpt")
    trainer(2).fit(second, ckpt_path=tmp_path / "one.ckpt")
    trainer(2).fit(whole)
    assert torch.equal(second.layer.weight, whole.layer.weight)
    (tmp_path / "one.ckpt").write_bytes(b"PK half")
    with pytest.raises(ValueError, match=r"one\.ckpt \(7 bytes\) is cut off"):
        trainer(2).fit(Tiny(), ckpt_path=tmp_path / "one.ckpt")


SAVES_FOREVER = """
import sys, torch
from lightning_kd.checkpoint_io import AtomicCheckpointIO
number = 0
while True:
    content = {"number": number, "state_dict": {"weight": torch.full((1 << 20,), float(number))}}
    AtomicCheckpointIO().save_checkpoint(content, sys.argv[1])
    print("saved", number, flush=True)
    number += 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0, 2])
def test_sigkill_while_writing_leaves_the_last_whole_checkpoint(tmp_path, moment) -> None:
    script, path = tmp_path / "saves.py", tmp_path / "last.ckpt"
    script.write_text(textwrap.dedent(SAVES_FOREVER))

    def half_written(_) -> bool:
        temporary = list(tmp_path.glob("last.ckpt.tmp-*"))
        try:
            started = [file.stat().st_size > moment << 20 for file in temporary]
        except FileNotFoundError:
            return False
        return path.exists() and any(started)

    lines = run_until_killed([script, path], half_written)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert loaded["number"] >= max(len(lines) - 1, 0)  # the first save may be unannounced yet
    assert torch.equal(loaded["state_dict"]["weight"], torch.full((1 << 20,), loaded["number"]))
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "saves.py"]
