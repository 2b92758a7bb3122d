"""The strategies of a run by name and by class, without starting a process."""

import os
from importlib.util import find_spec
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch import nn

from lightning_kd import strategies
from lightning_kd.optim import decay_groups, mark_matrices
from lightning_kd.strategies import DeepSpeedCPUStrategy, ZeROStrategy, strategy_for_run
from lightning_kd.zero import require_element_wise

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="deepspeed is not installed"
)


def test_each_trainer_gets_a_strategy_of_its_own() -> None:
    given = DDPStrategy(find_unused_parameters=True)
    ours = strategy_for_run(given)
    assert isinstance(ours, DDPStrategy)
    assert ours is not given
    assert ours._ddp_kwargs == {"find_unused_parameters": True}
    assert strategy_for_run("ddp") == "ddp"
    assert strategy_for_run("deepspeed_cpu") == "deepspeed_cpu"


@needs_deepspeed
def test_lightnings_names_of_deepspeed_mean_the_strategy_with_ordinary_checkpoints() -> None:
    found = strategy_for_run("deepspeed_stage_3_offload")
    assert isinstance(found, ZeROStrategy)
    assert found.config is not None
    zero = found.config["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["offload_param"]["device"] == zero["offload_optimizer"]["device"] == "cpu"
    assert found.config["zero_force_ds_cpu_optimizer"] is False


@needs_deepspeed
def test_lightnings_own_deepspeed_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"folders.*take lightning_kd.strategies.ZeROStrategy"):
        strategy_for_run(DeepSpeedStrategy())


@needs_deepspeed
def test_the_name_is_registered_and_its_processes_talk_by_gloo() -> None:
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="deepspeed_cpu", logger=False)
    assert isinstance(trainer.strategy, DeepSpeedCPUStrategy)
    assert not trainer.strategy.zero_stage_3
    assert trainer.strategy.root_device == torch.device("cpu", 0)
    assert trainer.strategy._get_process_group_backend() == "gloo"
    assert os.environ["DS_ACCELERATOR"] == "cpu"


def test_without_deepspeed_an_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setattr(strategies, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-kd\[distributed\]'"):
        ZeROStrategy()


def test_only_element_wise_optimizers_get_pieces() -> None:
    weights = [nn.Parameter(torch.zeros(2, 2))]
    require_element_wise(torch.optim.AdamW(weights))
    require_element_wise(torch.optim.SGD(weights, 0.1))
    for whole in (torch.optim.Adafactor(weights), torch.optim.LBFGS(weights)):
        with pytest.raises(ValueError, match=f"{type(whole).__name__} may need them whole"):
            require_element_wise(whole)


class Small(L.LightningModule):
    """A matrix, a vector and, where asked for, a quantized weight."""

    def __init__(self, strategy: object, *, quantized: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        if quantized:
            self.extra = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
        self._trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]


def test_a_matrix_decays_also_when_fsdp_has_made_it_flat() -> None:
    module = Small(object())
    mark_matrices(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.flatten()
    matrices, vectors = decay_groups(module.named_parameters(), 0.1)
    assert matrices["weight_decay"] == 0.1
    assert [p.numel() for p in matrices["params"]] == [6]
    assert vectors["weight_decay"] == 0
    assert [p.numel() for p in vectors["params"]] == [3]


def test_fsdp_does_not_flatten_quantized_weights() -> None:
    mark_matrices(Small(DDPStrategy(), quantized=True))
    with pytest.raises(ValueError, match=r"FSDPStrategy cannot distribute extra.*use the ddp"):
        mark_matrices(Small(FSDPStrategy(), quantized=True))
