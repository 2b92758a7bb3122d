"""Packed weights: the same model, rows that do not depend on each other, adapters left alone."""

import pytest
import torch
from torch import nn

from lightning_kd.nn import (
    DynamicLoRALinear,
    PackedLinear,
    can_pack,
    pack_linear_layers,
    packed_linear,
)
from tests.decoding.models import FAMILIES, decoder, prompt

pytestmark = pytest.mark.skipif(not can_pack(), reason="torch without oneDNN")


@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_linear_layer(bias) -> None:
    layer = nn.Linear(37, 53, bias=bias)
    packed = PackedLinear(layer.weight, layer.bias)
    x = torch.randn(2, 5, 37)
    torch.testing.assert_close(packed(x), layer(x).detach())
    assert torch.equal(packed.weight, layer.weight)
    assert (packed.in_features, packed.out_features) == (37, 53)
    assert not list(packed.parameters())


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (1, 2), (0,), (2, 0), (4,)])
def test_any_number_of_rows_keeps_its_shape(shape) -> None:
    """Few rows are filled up and cut again."""
    layer = nn.Linear(8, 3)
    packed = PackedLinear(layer.weight, layer.bias)
    x = torch.randn(*shape, 8)
    torch.testing.assert_close(packed(x), layer(x).detach())


@pytest.mark.parametrize("rows", [2, 3, 5, 9, 17])
def test_a_row_has_the_same_bits_whatever_comes_with_it(rows) -> None:
    packed = PackedLinear(torch.randn(384, 256), None)
    x = torch.randn(rows, 256)
    assert torch.equal(packed(x), torch.cat([packed(row[None]) for row in x]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_answers_alike(family) -> None:
    model, packed = decoder(family), decoder(family)
    linear = sum(type(m).__name__ in ("Linear", "Conv1D") for m in model.modules())
    assert pack_linear_layers(packed) == linear
    assert not any(type(m).__name__ in ("Linear", "Conv1D") for m in packed.modules())
    with torch.no_grad():
        torch.testing.assert_close(
            packed(prompt()).logits, model(prompt()).logits, atol=2e-5, rtol=0
        )


def test_a_tied_embedding_stays() -> None:
    model = decoder("tied llama")
    before = model.model.embed_tokens.weight.clone()
    pack_linear_layers(model)
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert torch.equal(model.lm_head.weight, before)


def test_other_layers_stay() -> None:
    class Other(nn.Linear):
        pass

    adapted = DynamicLoRALinear(nn.Linear(4, 4), 2)
    model = nn.ModuleDict(
        {
            "adapted": adapted,
            "other": Other(4, 4),
            "narrow": nn.Linear(4, 4, dtype=torch.bfloat16),
            "plain": nn.Linear(4, 4),
        }
    )
    assert pack_linear_layers(model) == 1
    assert isinstance(model["plain"], PackedLinear)
    assert type(adapted.base_layer) is nn.Linear


def test_without_onednn_it_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(packed_linear, "can_pack", lambda: False)
    with pytest.raises(RuntimeError, match="no oneDNN"):
        pack_linear_layers(nn.Linear(2, 2))
