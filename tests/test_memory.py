"""Bytes by arithmetic, against tensors and against known sums (checks Q13 and Q14)."""

import pytest

from lightning_kd.memory import adapter_memory
from lightning_kd.methods import QDyLoRA
from lightning_kd.nn.four_bit_linear import packed_tensors
from tests import tiny
from tests.conformance.matrix import fit


@pytest.mark.parametrize("double_quant", [True, False])
def test_its_memory_is_as_predicted(double_quant) -> None:  # Q13
    module = tiny.method("QDyLoRA", double_quant=double_quant)
    assert isinstance(module, QDyLoRA)
    run = fit(module, max_steps=2)
    (optimizer,) = run.optimizers

    def size(tensors) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    layers = module.adapters.values()
    factors = [p for layer in layers for p in (layer.lora_A, layer.lora_B)]
    bases = [packed_tensors(layer.base_layer) for layer in layers]
    # The step cleared the gradients.
    sum(module.objective(tiny.batch()).values()).backward()  # type: ignore[union-attr]
    found = adapter_memory(
        [(a.in_features, a.out_features) for a in layers], 4, double_quant=double_quant
    )
    assert found.codes == size(codes for codes, *_ in bases)
    assert found.scales == size(t for _, *scales in bases for t in scales)
    assert found.adapters == size(factors)
    assert found.gradients == size(p.grad for p in factors if p.grad is not None)
    moments = ("exp_avg", "exp_avg_sq")
    assert found.moments == size(optimizer.state[p][m] for p in factors for m in moments)
    assert found.total == sum(vars(found).values())


def test_falcon_40b_is_as_large_as_its_arithmetic_says() -> None:  # Q14
    blocks = 60 * [(8192, 9216), (8192, 8192), (8192, 32768), (32768, 8192)]
    found = adapter_memory(blocks, 64, adapter_bytes=2)
    expected = {"codes": 20.38, "scales": 0.65, "adapters": 0.89, "gradients": 0.89}
    for name, gigabytes in {**expected, "moments": 3.55}.items():
        assert getattr(found, name) / 1e9 == pytest.approx(gigabytes, rel=0.01), name
    single = adapter_memory(blocks, 64, double_quant=False)
    assert single.scales / 1e9 == pytest.approx(2.55, rel=0.01)
