"""What holds the mean: names, dtypes, swaps that give the same bits back, memory."""

import pytest
import torch
from torch import nn

from lightning_kd.averaging import WeightMean
from lightning_kd.frozen import Frozen


class Tied(nn.Module):
    """Two layers of one weight, a frozen one and a hidden one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.fixed = nn.Linear(3, 3).requires_grad_(requires_grad=False)
        self.teacher = Frozen(nn.Linear(3, 3))


def random_(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_swap_and_back_is_bitwise_and_draws_nothing(dtype) -> None:  # C14
    module = random_(Tied(), 0).to(dtype)
    mean = WeightMean(module)
    for seed in range(3):
        mean.add()
        random_(module, seed)
    raw, state = weights(module), torch.get_rng_state()
    average = {name: value.clone() for name, value in mean.average.items()}
    for _ in range(3):
        mean.swap()
        assert all(
            torch.equal(module.get_parameter(name), value.to(dtype))
            for name, value in average.items()
        )
        assert {n: v.tolist() for n, v in mean.average.items()} == {
            n: v.tolist() for n, v in average.items()
        }
        assert torch.equal(mean.raw["first.weight"], raw[0])
        mean.swap()
        assert all(torch.equal(a, b) for a, b in zip(raw, weights(module), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_trainable_weights_once_each_and_nothing_else() -> None:
    mean = WeightMean(Tied(), "student.")
    mean.add()
    assert list(mean.average) == ["student.first.weight", "student.second.bias"]
    owner = nn.Module()
    owner.student = mean.module
    assert mean.names_in(owner) == {
        "student.first.weight": "student.first.weight",
        "student.second.weight": "student.first.weight",
        "student.second.bias": "student.second.bias",
    }


def test_half_precision_weights_have_a_mean_in_single() -> None:
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    mean = WeightMean(layer)
    for weight in (1.0, 1.0078125, 1.0):  # the mean lies between two numbers of bfloat16
        layer.weight.data.fill_(weight)
        mean.add()
    assert mean.average["weight"].dtype == torch.float32
    assert mean.average["weight"].item() == pytest.approx(1.0026042, abs=1e-6)
    mean.swap()
    assert layer.weight.item() == 1.0
    assert mean.average["weight"].item() == pytest.approx(1.0026042, abs=1e-6)


def test_a_strided_weight_keeps_its_layout() -> None:
    layer = nn.Linear(3, 2, bias=False)
    layer.weight = nn.Parameter(torch.arange(6.0).view(3, 2).t())  # as DyLoRA's lora_B
    mean = WeightMean(layer)
    mean.add()
    assert mean.average["weight"].stride() == layer.weight.stride() == (1, 2)
    assert torch.equal(mean.average["weight"], layer.weight)


def test_the_swapped_module_is_not_averaged_into_itself() -> None:
    mean = WeightMean(nn.Linear(1, 1))
    mean.add()
    mean.swap()
    with pytest.raises(RuntimeError, match="swap back before"):
        mean.add()


def test_nothing_to_average_and_a_foreign_average_are_refused() -> None:
    with pytest.raises(ValueError, match="no weight requires a gradient"):
        WeightMean(nn.Linear(1, 1).requires_grad_(requires_grad=False)).add()
    wide = {"weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="the average in the checkpoint is of 'weight'"):
        WeightMean(nn.Linear(1, 1)).load(wide, wide, 1)
