"""Frozen: what the wrapper hides, and what it must not get in the way of."""

import copy
import pickle

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.frozen import Frozen


class Distiller(L.LightningModule):
    """A student, a teacher, and a pair of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(3, 2)
        self.teacher = Frozen(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)))

    def training_step(self, batch, batch_idx):
        assert not self.teacher.module.training
        return (self.student(batch[0]) - self.teacher.teach(batch[0])).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=4)


def test_the_owner_sees_neither_parameters_nor_state_nor_modules() -> None:
    owner = Distiller()
    assert set(owner.state_dict()) == {"student.weight", "student.bias"}
    assert {name for name, _ in owner.named_parameters()} == {"student.weight", "student.bias"}
    assert [name for name, _ in owner.named_modules()] == ["", "student", "teacher"]
    assert list(owner.teacher.buffers()) == []


def test_owners_state_loads_strictly_without_the_teacher() -> None:
    owner, other = Distiller(), Distiller()
    other.load_state_dict(owner.state_dict(), strict=True)
    assert torch.equal(other.student.weight, owner.student.weight)


def test_inner_module_is_in_eval_mode_and_stays_there() -> None:
    inner = nn.Dropout(0.5)
    frozen = Frozen(inner)
    for wake in (frozen.train, nn.Sequential(frozen).train):
        wake()
        assert not inner.training
        assert torch.equal(frozen(torch.ones(1000)), torch.ones(1000))


def test_parameters_ask_for_no_gradient_even_when_the_owner_does() -> None:
    frozen = Frozen(nn.Linear(3, 2))
    nn.ModuleList([frozen]).requires_grad_(True)
    assert not any(p.requires_grad for p in frozen.module.parameters())


def test_gradients_flow_through_to_the_inputs_and_only_there() -> None:
    linear = nn.Linear(3, 2, bias=False)
    frozen = Frozen(linear)
    x = torch.zeros(3, requires_grad=True)
    frozen(x).sum().backward()
    torch.testing.assert_close(x.grad, linear.weight.sum(0))
    assert linear.weight.grad is None


def test_teach_builds_no_graph() -> None:
    frozen = Frozen(nn.Linear(3, 2))
    x = torch.zeros(3, requires_grad=True)
    assert frozen(x).requires_grad
    assert not frozen.teach(x).requires_grad
    assert torch.equal(frozen.teach(input=x), frozen(x))


def test_dtype_and_device_of_the_owner_reach_the_inner_module() -> None:
    owner = Distiller()
    owner.double()
    first = owner.teacher.module.get_submodule("0")
    assert first.weight.dtype == torch.float64
    owner.to("meta")
    assert first.weight.device.type == "meta"
    assert not first.weight.requires_grad


def test_what_concerns_the_shell_alone_stops_at_the_shell() -> None:
    frozen = Frozen(nn.Linear(3, 2))
    frozen.to_empty(device="meta", recurse=False)
    assert frozen.module.get_parameter("weight").device.type == "cpu"


def test_deepcopy_shares_the_teacher_and_copies_the_rest() -> None:
    owner = Distiller()
    twin = copy.deepcopy(owner)
    assert twin.teacher is not owner.teacher
    assert twin.teacher.module is owner.teacher.module
    assert twin.student.weight is not owner.student.weight


def test_pickling_keeps_it_whole() -> None:  # a spawned process gets the module this way
    frozen = Frozen(nn.Linear(3, 2))
    again = pickle.loads(pickle.dumps(frozen))  # noqa: S301
    assert torch.equal(again.module.weight, frozen.module.get_parameter("weight"))
    assert not list(again.parameters())


def test_it_says_what_is_inside() -> None:
    assert repr(Frozen(nn.Linear(30, 40))) == "Frozen(Linear, 1,240 frozen parameters)"


def test_training_leaves_the_teacher_bit_equal_and_out_of_the_checkpoint(tmp_path) -> None:
    owner = Distiller()
    before = copy.deepcopy(owner.teacher.module.state_dict())
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(owner)  # filterwarnings = error: Lightning has nothing to say of eval modes
    after = owner.teacher.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    optimized = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for p in owner.student.parameters()}
    trainer.save_checkpoint(tmp_path / "owner.ckpt")
    saved = torch.load(tmp_path / "owner.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {"student.weight", "student.bias"}


def test_ddp_has_nothing_of_it_to_synchronize(tmp_path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        ddp = nn.parallel.DistributedDataParallel(Distiller())
        assert {n for n, _ in ddp.named_parameters()} == {
            "module.student.weight",
            "module.student.bias",
        }
        assert not list(ddp.named_buffers())
        with pytest.raises(
            RuntimeError, match="not needed when a module"
        ):  # no parameter wants a gradient
            nn.parallel.DistributedDataParallel(Frozen(nn.Linear(2, 2)))
    finally:
        torch.distributed.destroy_process_group()
