"""The DyLoRA layer against PEFT's, on Linear and on GPT-2's Conv1D; its state and its errors."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_kd.functional import LORA_SCALINGS
from lightning_kd.nn import DynamicLoRALinear, dynamic_lora_layers, sample_ranks
from tests import tiny

D, M, R = 6, 5, 4
RANKS = range(1, R + 1)
KINDS = ["linear", "linear without bias", "conv1d"]


def base_layer(kind: str = "linear") -> nn.Module:
    if kind == "conv1d":
        layer = Conv1D(M, D)
        nn.init.normal_(layer.bias)
        return layer
    return nn.Linear(D, M, bias=kind == "linear")


def layer(kind: str = "linear", scaling: str = "alpha/b", alpha: float = 6.0) -> DynamicLoRALinear:
    return tiny.filled(DynamicLoRALinear(base_layer(kind), R, alpha, scaling))


def peft_layer(ours: DynamicLoRALinear, rank: int) -> nn.Module:
    """PEFT's layer with the first `rank` components of ours."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=ours.alpha,  # type: ignore[arg-type]
        use_rslora=ours.scaling == "alpha/sqrt(b)",
        target_modules=["0"],
        fan_in_fan_out=isinstance(ours.base_layer, Conv1D),
    )
    model = get_peft_model(nn.Sequential(copy.deepcopy(ours.base_layer)), config)
    peft: nn.Module = model.get_submodule("base_model.model.0")
    state = dict(peft.named_parameters())
    with torch.no_grad():
        state["lora_A.default.weight"].copy_(ours.lora_A[:rank])
        state["lora_B.default.weight"].copy_(ours.lora_B[:, :rank])
    return peft


@pytest.mark.parametrize("scaling", ["alpha/b", "alpha/sqrt(b)"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", RANKS)
def test_every_rank_is_bit_equal_to_peft_s_layer(rank, kind, scaling) -> None:  # A1
    ours, x = layer(kind, scaling), torch.randn(2, 3, D)
    theirs = peft_layer(ours, rank)
    ours.set_rank(rank)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=2e-6)  # the training path


@pytest.mark.parametrize("rank", RANKS)
def test_gradients_are_those_of_peft_s_layer(rank) -> None:  # A4
    ours = layer()
    theirs = peft_layer(ours, rank)
    ours.set_rank(rank)
    inputs = [torch.ones(3, D, requires_grad=True), torch.ones(3, D, requires_grad=True)]
    for module, x in zip((ours, theirs), inputs, strict=True):
        module(x).square().sum().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    assert ours.lora_A.grad is not None
    assert ours.lora_B.grad is not None
    torch.testing.assert_close(ours.lora_A.grad[:rank], grads["lora_A.default.weight"])
    torch.testing.assert_close(ours.lora_B.grad[:, :rank], grads["lora_B.default.weight"])
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert not ours.lora_A.grad[rank:].any()
    assert not ours.lora_B.grad[:, rank:].any()
    assert ours.base_layer.weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", RANKS)
def test_starts_as_the_base_layer_at_every_rank(rank, kind) -> None:  # A2
    base, x = base_layer(kind), torch.randn(3, D)
    ours = DynamicLoRALinear(base, R)
    ours.set_rank(rank)
    with torch.no_grad():
        assert torch.equal(ours(x), base(x))
    assert torch.equal(ours(x), base(x))


def test_a_starts_kaiming_uniform_and_b_at_zero() -> None:
    ours = DynamicLoRALinear(nn.Linear(100, 3), 50)
    bound = 100**-0.5
    assert ours.lora_A.abs().max() <= bound
    assert ours.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not ours.lora_B.any()


@pytest.mark.parametrize("scaling", LORA_SCALINGS)
@pytest.mark.parametrize("rank", RANKS)
def test_the_total_scale_on_ones(rank, scaling) -> None:  # A3
    ours = DynamicLoRALinear(nn.Linear(4, 4), R, 16.0, scaling)
    nn.init.ones_(ours.lora_A)
    nn.init.ones_(ours.lora_B)
    ours.set_rank(rank)
    x = torch.ones(1, 4)
    expected = {"alpha/b": 64, "alpha/R": 64 * rank / R, "alpha/sqrt(b)": 64 * rank**0.5}
    difference = (ours(x) - ours.base_layer(x)).detach()
    torch.testing.assert_close(difference, torch.full((1, 4), float(expected[scaling])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaling", LORA_SCALINGS)
def test_merged_equals_unmerged_and_unmerge_restores_every_bit(scaling, kind) -> None:  # A8
    ours, x = layer(kind, scaling), torch.randn(7, D)
    weight: Tensor = ours.base_layer.weight  # type: ignore[assignment]
    before = weight.detach().clone()
    for rank in RANKS:
        ours.set_rank(rank)
        with torch.no_grad():
            expected = ours(x)
            ours.merge(rank)
            merged = ours(x)
            ours.unmerge()
        assert (merged - expected).norm() <= 1e-5 * expected.norm()
        assert not torch.equal(merged, ours.base_layer(x))
        assert torch.equal(weight, before)
        assert torch.equal(ours(x), ours(x))
        assert ours.merged_rank is None


def test_a_merged_layer_costs_the_base_alone() -> None:
    ours, x = layer(), torch.randn(3, D)
    ours.merge(2)
    assert torch.equal(ours(x), ours.base_layer(x))


def test_a_merged_layer_refuses_another_rank_another_merge_and_a_sweep() -> None:  # A9
    ours = layer()
    ours.set_rank(2)
    ours.merge(3)
    with pytest.raises(RuntimeError, match=r"merged at rank 3; .*unmerge\(\)"):
        ours.set_rank(3)
    with pytest.raises(RuntimeError, match=r"already merged at rank 3; .*unmerge\(\)"):
        ours.merge(2)
    with pytest.raises(RuntimeError, match=r"merged at rank 3; .*unmerge\(\)"):
        ours.set_sample_ranks(torch.tensor([1, 2]))
    assert ours.rank == 2
    ours.unmerge()
    with pytest.raises(RuntimeError, match="not merged"):
        ours.unmerge()


def test_a_quantized_base_refuses_to_be_merged_into() -> None:
    ours = layer()
    ours.base_layer.weight = nn.Parameter(torch.zeros(M, D, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(RuntimeError, match=r"quantized Linear .* export"):
        ours.merge(2)
    assert ours.merged_rank is None


@pytest.mark.parametrize("rank", [0, R + 1, -1, 2.5, 2.0, True, None])
@pytest.mark.parametrize("use", ["set_rank", "merge", "components"])
def test_a_rank_that_is_none_is_answered_with_the_range(use, rank) -> None:  # A9
    ours = layer()
    with pytest.raises(Exception, match=f"between 1 and max_rank={R}, got {rank}|Type-check"):
        getattr(ours, use)(rank)
    with pytest.raises(ValueError, match=f"between 1 and max_rank={R}, got {rank}"):
        ours.check_rank.__wrapped__(ours, rank)  # type: ignore[attr-defined]
    assert ours.merged_rank is None


def test_a_layer_nobody_gave_a_rank_raises() -> None:
    with pytest.raises(RuntimeError, match=r"before its rank was set; add SizeSampler"):
        layer()(torch.randn(2, D))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_rank": 0}, "max_rank must be a whole number of at least 1, got 0"),
        ({"scaling": "alpha"}, r"scaling must be one of .*alpha/sqrt\(b\), got 'alpha'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"alpha": 0.0}, "alpha must be a positive number, got 0.0"),
        ({"alpha": float("nan")}, "alpha must be a positive number, got nan"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicLoRALinear(nn.Linear(2, 2), **{"max_rank": 2, **changes})


def test_only_linear_layers_are_wrapped() -> None:
    with pytest.raises(TypeError, match="wraps a linear layer, got LayerNorm"):
        DynamicLoRALinear(nn.LayerNorm(3), 2)


def test_the_base_is_frozen_and_the_state_holds_whole_factors() -> None:
    ours = layer()
    ours.set_rank(1)
    trainable = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert trainable == {"lora_A", "lora_B"}
    state = ours.state_dict()
    assert set(state) == {"lora_A", "lora_B", "base_layer.weight", "base_layer.bias"}
    assert state["lora_A"].shape == (R, D)
    assert state["lora_B"].shape == (M, R)


def test_the_first_columns_of_b_are_one_block_in_memory() -> None:
    ours = layer()
    assert ours.lora_B.t().is_contiguous()
    assert copy.deepcopy(ours).lora_B.t().is_contiguous()


@pytest.mark.parametrize("rank", RANKS)
def test_components_are_contiguous_copies(rank) -> None:
    ours = layer()
    a, b = ours.components(rank)
    assert torch.equal(a, ours.lora_A[:rank])
    assert torch.equal(b, ours.lora_B[:, :rank])
    assert a.is_contiguous()
    assert b.is_contiguous()
    a.zero_()
    b.zero_()
    assert ours.lora_A.all()
    assert ours.lora_B.all()


@pytest.mark.parametrize("first", range(R))
def test_components_can_start_again_without_the_smaller_ones_noticing(first) -> None:
    ours = layer()
    a, b = ours.lora_A.detach().clone(), ours.lora_B.detach().clone()
    ours.reset_parameters(first)
    assert torch.equal(ours.lora_A[:first], a[:first])
    assert torch.equal(ours.lora_B[:, :first], b[:, :first])
    assert not ours.lora_B[:, first:].any()
    assert not torch.isclose(ours.lora_A[first:], a[first:]).any()


def test_the_adapter_lives_in_the_dtype_of_its_base() -> None:
    ours = DynamicLoRALinear(nn.Linear(D, M, dtype=torch.bfloat16), R)
    ours.set_rank(2)
    assert {ours.lora_A.dtype, ours.lora_B.dtype} == {torch.bfloat16}
    assert ours(torch.randn(3, D, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_dropout_drops_inputs_of_the_adapter_in_training_only() -> None:
    ours = tiny.filled(DynamicLoRALinear(nn.Linear(D, M), R, dropout=0.5))
    ours.set_rank(R)
    x = torch.randn(3, D)
    assert not torch.equal(ours.train()(x), ours(x))
    assert torch.equal(ours.eval()(x), ours(x))
    nn.init.zeros_(ours.lora_B)
    assert torch.equal(ours.train()(x), ours.base_layer(x))  # the base layer's are all there


def test_sample_ranks_hold_inside_the_block_only_also_after_an_error() -> None:
    ours, x = layer(), torch.randn(2, D)
    ours.set_rank(1)
    with torch.no_grad():
        low = ours(x)
        with sample_ranks([ours], torch.tensor([1, 4])):
            mixed = ours(x)
        with pytest.raises(ValueError, match="got 5"), sample_ranks([ours], torch.tensor([1, 5])):
            pytest.fail("no block is entered with a rank that is none")
        with pytest.raises(ZeroDivisionError), sample_ranks([ours], torch.tensor([2, 3])):
            _ = 1 // 0
        torch.testing.assert_close(mixed[0], low[0])
        assert not torch.allclose(mixed[1], low[1])
        assert torch.equal(ours(x), low)


def test_all_layers_are_found_by_the_name_of_what_they_wrap() -> None:
    model = nn.ModuleDict({"a": layer(), "b": nn.ModuleDict({"c": layer(), "d": nn.Linear(2, 2)})})
    assert list(dynamic_lora_layers(model)) == ["a", "b.c"]


def test_printing_shows_rank_and_scaling() -> None:
    ours = layer()
    ours.set_rank(2)
    assert "max_rank=4, rank=2, scaling='alpha/b'" in repr(ours)
