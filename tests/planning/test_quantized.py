"""4-bit storage: closed forms, and bitsandbytes' own tensors."""

import pytest
import torch
from torch import nn

from lightning_kd.planning import nf4_bytes
from lightning_kd.planning.live import tensor_bytes
from lightning_kd.planning.quantized import PlannedLinear4bit


def test_bits_of_a_weight_are_those_of_the_paper() -> None:
    count = 2**26
    assert 8 * sum(nf4_bytes(count, double_quant=False)) / count == pytest.approx(4.5, abs=1e-4)
    double = 4 + 8 / 64 + 32 / (64 * 256)
    assert 8 * sum(nf4_bytes(count)) / count == pytest.approx(double, abs=1e-3)


def quantized(shape, double_quant):
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(
        *shape, bias=False, quant_type="nf4", compress_statistics=double_quant
    )
    return layer.to("cpu")


def stored(layer) -> tuple[int, int]:
    """Bytes of codes and of all that reads them, as bitsandbytes keeps them."""
    state = layer.weight.quant_state
    scales = [state.absmax, state.code]
    if state.nested:
        scales += [state.state2.absmax, state.state2.code, state.offset]
    return tensor_bytes([layer.weight]), sum(t.numel() * t.element_size() for t in scales)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("shape", [(40, 30), (64, 64), (576, 1536), (7, 9)])
def test_bytes_are_exactly_those_of_bitsandbytes(shape, double_quant) -> None:
    layer = quantized(shape, double_quant)
    assert nf4_bytes(shape[0] * shape[1], double_quant=double_quant) == stored(layer)
    planned = PlannedLinear4bit(
        nn.Linear(shape[0], shape[1], bias=False), double_quant, torch.float32
    )
    found = tensor_bytes([planned.weight]), tensor_bytes([planned.get_buffer("scales")])
    assert found == stored(layer)


def test_a_product_keeps_its_input_only_as_old_releases_did() -> None:
    kept: list[int] = []
    for old in (False, True):
        layer = PlannedLinear4bit(nn.Linear(8, 4), True, torch.float32, old=old)
        out = layer(torch.ones(2, 8, requires_grad=True))
        node = out.grad_fn.next_functions[0][0]
        kept.append(node.x is not None)
    assert kept == [False, True]
