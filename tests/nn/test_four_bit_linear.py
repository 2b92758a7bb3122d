"""Linear layers in four bits, of both makes, against dense ones that hold the decoded weight."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.functional.four_bit import FourBitWeight, dequantize_four_bit
from lightning_kd.nn import DynamicLoRALinear, FourBitLinear, dense_weight, is_four_bit
from lightning_kd.nn.four_bit_linear import bitsandbytes_linear, packed_tensors, set_compute_dtype

BACKENDS = pytest.mark.parametrize("backend", ["reference", "bitsandbytes"])
INPUTS, OUTPUTS = 64, 48


def weights() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(OUTPUTS, INPUTS, generator=generator), torch.randn(
        OUTPUTS, generator=generator
    )


def made(backend: str, **settings: Any) -> nn.Linear:
    weight, bias = weights()
    given = {"kind": "nf4", "double_quant": True, "compute_dtype": torch.float32, **settings}
    if backend == "reference":
        return FourBitLinear(weight, bias, **given)
    pytest.importorskip("bitsandbytes")
    return bitsandbytes_linear(weight, bias, **given)


def dense(layer: nn.Linear) -> nn.Linear:
    """Full precision, with the weight that the codes stand for."""
    twin = nn.Linear(INPUTS, OUTPUTS).requires_grad_(requires_grad=False)
    twin.weight.copy_(dense_weight(layer))
    assert layer.bias is not None
    twin.bias.copy_(layer.bias)
    return twin


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(1))
    return x.to(dtype).requires_grad_()


@BACKENDS
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_forward_and_the_gradient_of_the_input_are_a_dense_layer_s(
    backend, kind, double_quant
) -> None:  # Q7
    layer = made(backend, kind=kind, double_quant=double_quant)
    twin = dense(layer)
    assert not torch.allclose(twin.weight, weights()[0], atol=1e-3)
    x, y = inputs(2, 3), inputs(2, 3)
    signal = torch.randn(2, 3, OUTPUTS)
    ours, theirs = layer(x), twin(y)
    ours.backward(signal)
    theirs.backward(signal)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=1e-6)
    assert all(p.grad is None and not p.requires_grad for p in layer.parameters())


def test_the_two_makes_agree() -> None:  # Q5
    ours, theirs = made("reference", double_quant=False), made("bitsandbytes", double_quant=False)
    assert torch.equal(dense_weight(ours), dense_weight(theirs))
    for mine, other in zip(packed_tensors(ours), packed_tensors(theirs), strict=True):
        assert torch.equal(mine.reshape(-1), other.reshape(-1))
    torch.testing.assert_close(ours(inputs(5)), theirs(inputs(5)), rtol=0, atol=1e-5)


@BACKENDS
@pytest.mark.parametrize(("rank", "num_frozen"), [(1, 0), (3, 0), (3, 1), (4, 0), (4, 3)])
def test_an_adapter_on_codes_is_bit_for_bit_one_on_the_decoded_weight(
    backend, rank, num_frozen
) -> None:  # Q8
    layer = made(backend)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = DynamicLoRALinear(layer, max_rank=4)
    theirs = copy.deepcopy(ours)
    theirs.base_layer = dense(layer)
    for parameter in (ours.lora_B, theirs.lora_B):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    results = []
    for adapter in (ours, theirs):
        adapter.set_rank(rank, num_frozen)
        x = inputs(2, 3)
        output = adapter(x)
        output.square().sum().backward()
        results.append([output, x.grad, adapter.lora_A.grad, adapter.lora_B.grad])
        with torch.no_grad():
            results[-1].append(adapter(x))
    for mine, other in zip(*results, strict=True):
        assert torch.equal(mine, other)


@BACKENDS
def test_nothing_but_codes_waits_for_the_backward_pass(backend) -> None:
    layer = made(backend)
    codes = {t.untyped_storage().data_ptr() for t in packed_tensors(layer)}
    held: list[Tensor] = []

    def hold(saved: Tensor) -> Tensor:
        held.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda saved: saved):
        layer(inputs(7))
    assert all(t.untyped_storage().data_ptr() in codes for t in held)


@BACKENDS
def test_evaluation_answers_as_training_does_and_leaves_the_codes_alone(backend) -> None:
    layer = made(backend)
    before = [t.clone() for t in packed_tensors(layer)]
    trained = layer(inputs(5)).detach()
    layer.eval()
    with torch.no_grad():  # an input that needs no gradient is what would set off a repacking
        assert torch.equal(layer(inputs(5).detach()), trained)
    assert all(torch.equal(a, b) for a, b in zip(before, packed_tensors(layer), strict=True))


@BACKENDS
@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_casting_a_model_leaves_codes_and_scales_as_they_are(backend, cast) -> None:
    layer = made(backend)
    before = [t.clone() for t in packed_tensors(layer)]
    weight = dense_weight(layer)
    cast(layer)
    assert all(torch.equal(a, b) for a, b in zip(before, packed_tensors(layer), strict=True))
    assert torch.equal(dense_weight(layer), weight)


@BACKENDS
def test_the_product_is_computed_in_the_type_that_was_set_and_comes_in_the_input_s(backend) -> None:
    layer = made(backend)
    exact = layer(inputs(5))
    set_compute_dtype(layer, torch.bfloat16)
    rough = layer(inputs(5))
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.3)
    assert torch.equal(rough, rough.bfloat16().float())
    x = inputs(5)
    layer(x).sum().backward()
    half = layer(inputs(5, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert dense_weight(layer).dtype == torch.float32


@BACKENDS
def test_under_autocast_the_product_is_in_autocast_s_type(backend) -> None:
    layer = made(backend)
    x = inputs(5)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    output.float().sum().backward()
    assert x.grad is not None
    expected = dense_weight(layer).sum(0).expand(5, -1)
    torch.testing.assert_close(x.grad, expected, rtol=0.05, atol=0.2)
    set_compute_dtype(layer, torch.bfloat16)
    assert torch.equal(layer(x).bfloat16(), output.bfloat16())


def test_double_precision_is_not_narrowed() -> None:
    layer = made("reference")
    x = inputs(5, dtype=torch.float64)
    expected = x.detach() @ dense_weight(layer).double().t() + weights()[1].double()
    torch.testing.assert_close(layer(x).detach(), expected, rtol=1e-14, atol=1e-13)


def test_a_layer_without_bias_and_its_print() -> None:
    layer = FourBitLinear(weights()[0], kind="fp4", double_quant=False)
    torch.testing.assert_close(layer(inputs(2)), inputs(2) @ dense_weight(layer).t())
    assert list(dict(layer.named_parameters())) == ["weight", "scales"]
    assert repr(layer) == (
        "FourBitLinear(in_features=64, out_features=48, kind='fp4', double_quant=False)"
    )


@BACKENDS
def test_both_makes_are_known_and_a_dense_layer_is_not(backend) -> None:
    layer = made(backend)
    assert is_four_bit(layer)
    assert not is_four_bit(nn.Linear(2, 2))
    assert not is_four_bit(DynamicLoRALinear(layer, 2))
    with pytest.raises(RuntimeError, match="cannot be merged into; export the adapter"):
        DynamicLoRALinear(layer, 2).merge(1)


@pytest.mark.parametrize("inputs", [16, 32, 48, 96])
def test_a_shape_that_bitsandbytes_decodes_wrongly_is_refused(inputs) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(64, inputs, generator=torch.Generator().manual_seed(0))
    codes, state = functional.quantize_4bit(weight, quant_type="nf4")
    packed = FourBitWeight(codes.view(-1), state.absmax, None)
    decode: Callable[..., Tensor] = functional.dequantize_4bit
    right = torch.allclose(decode(codes, state), dequantize_four_bit(packed, weight.shape))
    if right:  # another processor, or a release without the defect
        assert is_four_bit(bitsandbytes_linear(weight, None, "nf4", True, torch.float32))
        return
    with pytest.raises(ValueError, match=f"weight of {inputs} inputs wrongly.*backend reference"):
        bitsandbytes_linear(weight, None, "nf4", True, torch.float32)
