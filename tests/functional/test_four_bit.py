"""Four-bit codes: known errors, hand-computed bytes, bitsandbytes (checks Q1 to Q5)."""

import pytest
import torch

from lightning_kd.functional.four_bit import (
    dequantize_four_bit,
    dequantize_scales,
    dynamic_levels,
    four_bit_bytes,
    four_bit_levels,
    quantize_four_bit,
)

KINDS = pytest.mark.parametrize("kind", ["nf4", "fp4"])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def round_trip(weight: torch.Tensor, kind: str = "nf4", **settings) -> torch.Tensor:
    blocks = {k: v for k, v in settings.items() if k == "block"}
    packed = quantize_four_bit(weight, kind, **settings)
    return dequantize_four_bit(packed, weight.shape, kind, **blocks)


def codes_of(packed) -> list[int]:
    return [code for byte in packed.codes.tolist() for code in (byte >> 4, byte & 15)]


@pytest.mark.parametrize(("block", "expected"), [(64, 0.092), (128, 0.0956), (4096, 0.110)])
def test_the_error_on_gaussian_weights_is_nf4_s(block, expected) -> None:  # Q1
    weight = normal(4096 * 64)
    error = (round_trip(weight, double_quant=False, block=block) - weight).norm() / weight.norm()
    assert float(error) == pytest.approx(expected, abs=0.002)


def test_nf4_beats_fp4_on_gaussian_weights() -> None:
    weight = normal(64 * 1000)
    nf4, fp4 = ((round_trip(weight, kind) - weight).norm() for kind in ("nf4", "fp4"))
    assert nf4 < 0.85 * fp4


def test_nf4_has_sixteen_sorted_levels_an_exact_zero_and_both_ends() -> None:  # Q2
    levels = four_bit_levels("nf4")
    assert len(levels) == 16
    assert torch.equal(levels, levels.sort().values)
    assert levels[[0, 7, 15]].tolist() == [-1, 0, 1]
    # Evenly spaced quantiles of a normal distribution, scaled to end at 1: the paper's recipe.
    tail = torch.tensor(0.9677083, dtype=torch.float64)
    for count, ours in ((9, levels[8:].flip(0)), (8, -levels[:7])):
        spaced = torch.linspace(float(tail), 0.5, count, dtype=torch.float64)[:-1]
        quantiles = torch.special.ndtri(spaced)
        scale = torch.special.ndtri(tail)
        torch.testing.assert_close(ours.double(), quantiles / scale, rtol=1e-5, atol=1e-6)


@KINDS
def test_zeros_stay_zero_and_the_largest_of_a_block_is_exact(kind) -> None:  # Q2
    weight = normal(5 * 64)
    weight[64:128] = 0
    back = round_trip(weight, kind, double_quant=False)
    assert not back[64:128].any()
    blocks = zip(weight.view(-1, 64), back.view(-1, 64), strict=True)
    for block, decoded in blocks:
        assert decoded[block.abs().argmax()] == block[block.abs().argmax()]
    zeros = torch.zeros(300)
    assert torch.equal(round_trip(zeros, kind, double_quant=True), zeros)


@KINDS
@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 64 * 7 + 11])
def test_decoded_codes_are_encoded_as_themselves(kind, size) -> None:  # Q3
    first = quantize_four_bit(normal(size), kind, double_quant=False)
    back = dequantize_four_bit(first, (size,), kind)
    again = quantize_four_bit(back, kind, double_quant=False)
    assert len(first.codes) == (size + 1) // 2
    assert torch.equal(first.scales, again.scales)
    # -0.0 has a code of its own in fp4, which is 0 again
    assert torch.equal(dequantize_four_bit(again, (size,), kind), back)
    if kind == "nf4":
        assert torch.equal(first.codes, again.codes)


def test_every_weight_has_the_nearest_level() -> None:
    weight = normal(3, 64)
    levels = four_bit_levels("nf4")
    scales = weight.abs().amax(1, keepdim=True)
    nearest = (weight[..., None] - scales[..., None] * levels).abs().argmin(-1)
    assert codes_of(quantize_four_bit(weight, double_quant=False)) == nearest.flatten().tolist()


def test_bytes_by_hand() -> None:
    weight = torch.tensor([[4.0, -4.0], [0.0, 0.5], [1.0, 3.0]])  # of 4: 1, -1, 0, .125, .25, .75
    packed = quantize_four_bit(weight, double_quant=False)
    assert codes_of(packed) == [15, 0, 7, 9, 10, 14]
    assert packed.codes.tolist() == [0xF0, 0x79, 0xAE]
    assert packed.scales.tolist() == [4.0]
    decoded = dequantize_four_bit(packed, (3, 2), dtype=torch.bfloat16)
    assert decoded.dtype == torch.bfloat16
    assert decoded.float().flatten().tolist() == pytest.approx(
        [4, -4, 0, 4 * 0.16093, 4 * 0.24611, 4 * 0.72296], rel=4e-3
    )
    odd = quantize_four_bit(torch.tensor([1.0, 0.0, -1.0]))
    assert odd.codes.tolist() == [0xF7, 0x07]  # the half byte left over is a zero


def test_fp4_is_a_sign_two_bits_of_exponent_and_one_of_mantissa() -> None:
    levels = four_bit_levels("fp4") * 12
    expected = [0, 0.0625, 8, 12, 4, 6, 2, 3]
    assert levels.tolist() == pytest.approx([*expected, *(-v for v in expected)])


@pytest.mark.parametrize(("double_quant", "bits"), [(False, 4 + 32 / 64), (True, 4.127)])
def test_bits_a_weight(double_quant, bits) -> None:  # Q4
    size = 64 * 256 * 64
    packed = quantize_four_bit(normal(size), double_quant=double_quant)
    stored = sum(t.numel() * t.element_size() for t in packed if t is not None)
    assert stored == sum(four_bit_bytes(size, double_quant=double_quant))
    assert 8 * stored / size == pytest.approx(bits, abs=6e-4)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 64 * 256, 64 * 256 + 1, 40_001])
@pytest.mark.parametrize("double_quant", [True, False])
def test_stored_bytes_are_those_predicted(size, double_quant) -> None:
    packed = quantize_four_bit(normal(size), double_quant=double_quant)
    stored = [t.numel() * t.element_size() for t in packed if t is not None]
    assert (stored[0], sum(stored[1:])) == four_bit_bytes(size, double_quant=double_quant)


def test_falcon_40b_is_as_large_as_its_arithmetic_says() -> None:  # Q14
    block = [(8192, 9216), (8192, 8192), (8192, 32768), (32768, 8192)]
    for double_quant, scales in ((True, 0.65), (False, 2.55)):
        sizes = [four_bit_bytes(d * m, double_quant=double_quant) for d, m in block]
        found = [60 * sum(kind) / 1e9 for kind in zip(*sizes, strict=True)]
        assert found == pytest.approx([20.38, scales], rel=0.01)


def test_scales_in_eight_bits_are_the_nearest_of_256_about_their_mean() -> None:
    weight = normal(64 * 600)
    single, double = (quantize_four_bit(weight, double_quant=d) for d in (False, True))
    assert torch.equal(single.codes, double.codes)
    assert double.outer_scales is not None
    *outer, mean = double.outer_scales.tolist()
    assert len(outer) == 3  # 600 = 256 + 256 + 88
    assert mean == pytest.approx(float(single.scales.mean()))
    levels = dynamic_levels()
    for start, scale in zip((0, 256, 512), outer, strict=True):
        part = single.scales[start : start + 256] - mean
        assert scale == pytest.approx(float(part.abs().max()))
        gaps = (part[:, None] - scale * levels).abs()
        chosen = gaps.gather(1, double.scales[start : start + 256].long()[:, None])[:, 0]
        torch.testing.assert_close(chosen, gaps.amin(1), rtol=0, atol=1e-6)
    relative = (dequantize_scales(double) - single.scales).abs() / single.scales
    assert float(relative.max()) < 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: four_bit_levels("int4"), "is one of nf4, fp4, got 'int4'"),
        (lambda: quantize_four_bit(torch.ones(4), block=3), "an even number of weights, got 3"),
        (lambda: quantize_four_bit(torch.ones(4), block=0), "an even number of weights, got 0"),
    ],
)
def test_what_there_is_not_is_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@KINDS
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("shape", [(8, 8), (13, 6), (64, 33), (96, 192)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitsandbytes_has_the_same_codes(kind, double_quant, shape, dtype) -> None:  # Q5
    functional = pytest.importorskip("bitsandbytes").functional
    weight = normal(*shape).to(dtype)
    settings = {"quant_type": kind, "compress_statistics": double_quant}
    codes, state = functional.quantize_4bit(weight, **settings)
    ours = quantize_four_bit(weight, kind, double_quant=double_quant)
    assert torch.equal(ours.codes, codes.view(-1))
    theirs = functional.dequantize_4bit(codes, state).float()
    decoded = dequantize_four_bit(ours, shape, kind, dtype=dtype).float()
    if not double_quant:
        assert torch.equal(decoded, theirs)
        return
    assert ours.outer_scales is not None
    assert torch.equal(ours.outer_scales[:-1], state.state2.absmax)
    assert torch.equal(dynamic_levels(), state.state2.code)
    # Its table for 8-bit codes is coarse: of two levels equally near it may take the other one.
    used = ours.scales.numel() > 1
    apart = (ours.scales.int() - state.absmax.int()).abs() if used else torch.zeros(1)
    assert int(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 0.02
    torch.testing.assert_close(decoded, theirs, rtol=0.02, atol=0)


def test_tables_are_fp32_whatever_the_default_type_is() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    expected = dequantize_four_bit(quantize_four_bit(weight), (4, 64))
    torch.set_default_dtype(torch.float64)
    try:
        assert four_bit_levels("nf4").dtype == four_bit_levels("fp4").dtype == torch.float32
        assert torch.equal(dequantize_four_bit(quantize_four_bit(weight), (4, 64)), expected)
    finally:
        torch.set_default_dtype(torch.float32)
