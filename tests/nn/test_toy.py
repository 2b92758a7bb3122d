"""The linear toy of the specification: what each scaling can and cannot hold (check A17).

A target with singular values 3 * 0.7^i is approximated by one adapter of eight components; errors
are relative squared errors at every rank, 1 being no adapter at all.
"""

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.callbacks import SizeSampler
from lightning_kd.functional import truncate_svd
from lightning_kd.nn import DynamicLoRALinear

R, WIDTH, ALPHA, STEPS = 8, 32, 16.0, 4000
SINGULAR = 3 * 0.7 ** torch.arange(12)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def target() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(WIDTH, 12, generator=generator))[0] for _ in "ab")
    return (left * SINGULAR) @ right.t()


def best() -> list[float]:
    """Eckart-Young: the share of the energy that is left behind the first b values."""
    energy = SINGULAR.square()
    return [(energy[rank:].sum() / energy.sum()).item() for rank in range(1, R + 1)]


def trained(scaling: str, sizes: list[int], update: str) -> DynamicLoRALinear:
    """Adam at 5e-3, decayed linearly, on the squared Frobenius distance from the target."""
    torch.manual_seed(0)
    base = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.zeros_(base.weight)
    layer = DynamicLoRALinear(base, R, ALPHA, scaling)
    optimizer = torch.optim.Adam([layer.lora_A, layer.lora_B], lr=5e-3)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    sampler, identity, wanted = SizeSampler(sizes), torch.eye(WIDTH), target().t()
    for step in range(STEPS):
        rank = sampler.draw(step)
        layer.set_rank(rank, rank - 1 if update == "frozen" else 0)
        optimizer.zero_grad()
        (layer(identity) - wanted).square().sum().backward()
        optimizer.step()
        decay.step()
    return layer


def errors(layer: DynamicLoRALinear) -> list[float]:
    wanted = target()
    found = []
    for rank in range(1, R + 1):
        a, b = layer.components(rank)
        found.append(relative_error(b @ a * layer.scale(rank), wanted))
    return found


def relative_error(delta: Tensor, wanted: Tensor) -> float:
    return ((delta - wanted).square().sum() / wanted.square().sum()).item()


@pytest.mark.parametrize("update", ["full", "frozen"])
def test_one_factor_for_all_ranks_is_nearly_the_best_at_each(update) -> None:
    found = errors(trained("alpha/R", list(range(1, R + 1)), update))
    assert all(mine <= 1.05 * ideal for mine, ideal in zip(found[:6], best()[:6], strict=True))
    assert found[7] <= 0.01


def test_a_running_mean_cannot_hold_all_ranks_at_once() -> None:
    found = errors(trained("alpha/b", list(range(1, R + 1)), "full"))
    assert best()[0] < found[0] <= 0.56
    assert 0.03 <= found[7] <= 0.15


def test_plain_lora_cut_naively_is_worse_than_none_and_cut_by_svd_is_the_best() -> None:
    layer = trained("alpha/b", [R], "full")
    naive = errors(layer)
    assert naive[0] > 1
    assert naive[7] <= 0.01
    layer.scaling = "alpha/R"
    constant = errors(layer)
    assert all(b < c < n for b, c, n in zip(best()[:6], constant, naive, strict=False))
    for rank in range(1, R + 1):
        a, b = truncate_svd(layer.lora_A.detach(), layer.lora_B.detach(), rank)
        cut = relative_error(b @ a * layer.scale(rank), target())
        assert cut == pytest.approx(best()[rank - 1], rel=0.05, abs=2e-3)
