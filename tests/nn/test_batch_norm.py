"""Statistics measured anew are those of the data, for dictionaries too (check C12)."""

import pytest
import torch
from torch import nn

from lightning_kd.nn import refresh_batch_norm


def data(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"x": 3 + 2 * torch.randn(64, 1, generator=generator)} for _ in range(count)]


def test_stale_statistics_become_those_of_the_data() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(1, momentum=0.3))
    layer = model[1]
    assert isinstance(layer, nn.BatchNorm1d)
    layer.running_mean, layer.running_var = torch.tensor([-40.0]), torch.tensor([900.0])
    state = torch.get_rng_state()
    assert refresh_batch_norm(model, data(), lambda batch: model(batch["x"])) == 40
    assert layer.running_mean.item() == pytest.approx(3, abs=0.05)
    assert layer.running_var.item() == pytest.approx(4, abs=0.15)
    assert layer.momentum == 0.3
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)  # no dropout


def test_without_batch_norm_nothing_is_run() -> None:
    assert refresh_batch_norm(nn.LayerNorm(1), data(), lambda _: pytest.fail("it was run")) == 0


def test_after_an_error_modes_and_momenta_are_back() -> None:
    layer = nn.BatchNorm1d(1, momentum=0.3).eval()
    with pytest.raises(KeyError):
        refresh_batch_norm(layer, data(), lambda batch: layer(batch["y"]))
    assert layer.momentum == 0.3
    assert not layer.training
