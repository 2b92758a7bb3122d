"""The arithmetic of DyLoRA against plain LoRA, autograd on independent copies, and closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.functional import (
    LORA_SCALINGS,
    dynamic_lora,
    dynamic_lora_sweep,
    lora_scale,
    truncate_svd,
)

D, M, R = 6, 5, 4
RANKS = range(1, R + 1)


def numbers(*leading: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Base output, input and factors; the second one column-major, as in the layer."""
    base, x = torch.randn(*leading, M, dtype=dtype), torch.randn(*leading, D, dtype=dtype)
    return base, x, torch.randn(R, D, dtype=dtype), torch.randn(R, M, dtype=dtype).t()


def plain_lora(base: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """LoRA as everybody writes it: two linear layers, scaled last."""
    down, up = nn.Linear(D, a.shape[0], bias=False), nn.Linear(a.shape[0], M, bias=False)
    down.weight, up.weight = nn.Parameter(a.clone()), nn.Parameter(b.clone().contiguous())
    return base + up(down(x)) * scale


@pytest.mark.parametrize("leading", [(), (1,), (7,), (2, 3), (0, 3)])
@pytest.mark.parametrize("rank", RANKS)
@torch.no_grad()
def test_a_cut_is_bit_equal_to_a_plain_lora_of_the_first_components(rank, leading) -> None:  # A1
    base, x, a, b = numbers(*leading)
    cut = dynamic_lora(base, x, a, b, rank=rank, scale=2.5)
    assert torch.equal(cut, plain_lora(base, x, a[:rank], b[:, :rank], 2.5))


@pytest.mark.parametrize("rank", RANKS)
def test_the_training_path_gives_the_same_values_to_one_in_a_million(rank) -> None:  # A1
    base, x, a, b = numbers(2, 3)
    output = dynamic_lora(base, x, a, b, rank=rank, scale=2.5)
    torch.testing.assert_close(
        output, plain_lora(base, x, a[:rank], b[:, :rank], 2.5), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("rank", RANKS)
def test_full_gradients_are_autograd_s_on_a_truncated_copy_and_zero_beyond(rank) -> None:  # A4
    base, x, a, b = (t.requires_grad_() for t in numbers(2, 3))
    weight = torch.randn(2, 3, M)
    (dynamic_lora(base, x, a, b, rank=rank, scale=2.5) * weight).sum().backward()
    copies = [t.detach().clone().requires_grad_() for t in (base, x, a[:rank], b[:, :rank])]
    base_copy, x_copy, a_copy, b_copy = copies
    ((base_copy + 2.5 * x_copy @ a_copy.t() @ b_copy.t()) * weight).sum().backward()
    torch.testing.assert_close(base.grad, base_copy.grad)
    torch.testing.assert_close(x.grad, x_copy.grad)
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(a.grad[:rank], a_copy.grad)
    torch.testing.assert_close(b.grad[:, :rank], b_copy.grad)
    assert not a.grad[rank:].any()
    assert not b.grad[:, rank:].any()


@pytest.mark.parametrize(("first", "rank"), [(f, r) for r in RANKS for f in range(r)])
def test_frozen_components_get_no_gradient_but_pass_the_input_s_unchanged(
    first, rank
) -> None:  # A5
    given = numbers(2, 3)
    gradients = []
    for num_frozen in (0, first):
        base, x, a, b = (t.clone().requires_grad_() for t in given)
        output = dynamic_lora(base, x, a, b, rank=rank, scale=2.5, num_frozen=num_frozen)
        output.square().sum().backward()
        gradients.append((output, x.grad, base.grad, a.grad, b.grad))
    full, frozen = gradients
    for ours, theirs in zip(frozen[:3], full[:3], strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
    for ours, theirs in ((frozen[3], full[3]), (_t(frozen[4]), _t(full[4]))):
        assert ours is not None
        assert theirs is not None
        assert not ours[:first].any()
        assert ours[first:rank].all()
        torch.testing.assert_close(ours[first:rank], theirs[first:rank])
        assert not ours[rank:].any()


def _t(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.t()


@pytest.mark.parametrize("leading", [(), (3,), (2, 2)])
def test_gradients_are_the_derivatives(leading) -> None:
    inputs = [t.requires_grad_() for t in numbers(*leading, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *t: dynamic_lora(*t, rank=3, scale=0.7), inputs)


def test_an_input_that_needs_no_gradient_costs_none_and_changes_no_other() -> None:
    base, x, a, b = numbers(3)
    a.requires_grad_()
    dynamic_lora(base, x, a, b, rank=2, scale=1.0).sum().backward()
    assert x.grad is base.grad is b.grad is None
    torch.testing.assert_close(a.grad[:2], b[:, :2].sum(0)[:, None] * x.sum(0))  # type: ignore[index]


def test_strided_inputs_and_gradients_are_read_in_their_own_order() -> None:
    base, x, a, b = numbers(2, 3)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    straight = x.clone().requires_grad_()
    for tensor in (turned, straight):
        output = dynamic_lora(base, tensor, a, b, rank=3, scale=1.0)
        output.transpose(0, 1).cumsum(0).square().sum().backward()
    torch.testing.assert_close(turned.grad, straight.grad)


def test_an_empty_batch_has_empty_gradients() -> None:
    base, x, a, b = (t.requires_grad_() for t in numbers(0, 3))
    dynamic_lora(base, x, a, b, rank=2, scale=1.0).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 3, D)
    assert a.grad is not None
    assert not a.grad.any()


@pytest.mark.parametrize("grad", [True, False])
def test_the_output_keeps_the_base_layer_s_dtype(grad) -> None:
    base, x, a, b = numbers(3)
    with torch.set_grad_enabled(grad):
        output = dynamic_lora(base.bfloat16(), x.bfloat16(), a, b, rank=4, scale=1.0)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), base + x @ a.t() @ b.t(), rtol=0.05, atol=0.2)


@pytest.mark.parametrize("grad", [True, False])
def test_autocast_computes_the_update_in_its_own_dtype(grad) -> None:
    base, x, a, b = (t.requires_grad_(grad) for t in numbers(3))
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        output = dynamic_lora(base, x, a, b, rank=4, scale=1.0)
    low = (t.bfloat16() for t in (base, x, a, b))
    with torch.set_grad_enabled(grad):
        expected = dynamic_lora(*low, rank=4, scale=1.0).float()
    torch.testing.assert_close(output, expected, rtol=0.01, atol=0.05)
    assert not torch.equal(output, base + x @ a.t() @ b.t())
    if grad:
        output.sum().backward()
        assert {t.grad.dtype for t in (x, a, b) if t.grad is not None} == {torch.float32}


@torch.no_grad()
def test_a_sweep_gives_each_example_what_a_loop_gives_it() -> None:  # A18
    base, x, a, b = numbers(R, 3)
    scales = torch.tensor([lora_scale("alpha/b", 16.0, rank, R) for rank in RANKS])
    swept = dynamic_lora_sweep(base, x, a, b, torch.tensor(RANKS), scales)
    for i, rank in enumerate(RANKS):
        alone = dynamic_lora(base[i], x[i], a, b, rank=rank, scale=16 / rank)
        torch.testing.assert_close(swept[i], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_sweep_takes_examples_without_and_with_many_axes_and_keeps_the_dtype() -> None:
    ranks, scales = torch.tensor([1, 4]), torch.tensor([2.0, 0.5])
    base, x, a, b = numbers(2, 2, 3)
    swept = dynamic_lora_sweep(base, x, a, b, ranks, scales)
    flat = dynamic_lora_sweep(base[:, 0, 0], x[:, 0, 0], a, b, ranks, scales)
    torch.testing.assert_close(swept[:, 0, 0], flat)
    low = dynamic_lora_sweep(base.bfloat16(), x.bfloat16(), a, b, ranks, scales)
    assert low.dtype == torch.bfloat16


@pytest.mark.parametrize("rank", RANKS)
def test_the_scales_are_the_published_ones(rank) -> None:  # A3
    assert lora_scale("alpha/b", 12.0, rank, R) == 12 / rank
    assert lora_scale("alpha/R", 12.0, rank, R) == 12 / R
    assert lora_scale("alpha/sqrt(b)", 12.0, rank, R) == 12 / math.sqrt(rank)


def test_two_scales_are_plain_lora_s_at_the_full_rank() -> None:
    assert lora_scale("alpha/b", 12.0, R, R) == lora_scale("alpha/R", 12.0, R, R)


def test_an_unknown_scale_is_answered_with_all_of_them() -> None:
    with pytest.raises(ValueError, match=r"alpha/b, alpha/R, alpha/sqrt\(b\), got 'alpha/r'"):
        lora_scale("alpha/r", 16.0, 1, 8)
    assert len(LORA_SCALINGS) == 3


@pytest.mark.parametrize("rank", RANKS)
def test_the_svd_cut_is_the_best_of_its_rank(rank) -> None:
    """Eckart-Young: what is left has the discarded singular values, and no more."""
    _, _, a, b = numbers()
    cut_a, cut_b = truncate_svd(a, b, rank)
    assert cut_a.shape == (rank, D)
    assert cut_b.shape == (M, rank)
    singular = torch.linalg.svdvals(b @ a)
    error = torch.linalg.matrix_norm(b @ a - cut_b @ cut_a)
    torch.testing.assert_close(error, singular[rank:].norm(), rtol=1e-4, atol=1e-5)


def test_the_svd_cut_shares_each_singular_value_evenly() -> None:
    _, _, a, b = numbers()
    cut_a, cut_b = truncate_svd(a, b, 3)
    torch.testing.assert_close(cut_a.norm(dim=1), cut_b.norm(dim=0))
    torch.testing.assert_close(cut_a.norm(dim=1).square(), torch.linalg.svdvals(b @ a)[:3])


def test_the_output_may_be_changed_in_place() -> None:
    """Falcon's blocks add to what their linear layers return."""
    a, b, base = torch.ones(2, 4), torch.ones(3, 2), torch.zeros(1, 2, 3, requires_grad=True)
    output = dynamic_lora(base * 1, torch.ones(1, 2, 4), a, b, rank=2, scale=1.0)
    output += 1.0
    output.sum().backward()
    assert torch.equal(output, torch.full((1, 2, 3), 9.0))
    assert torch.equal(base.grad, torch.ones(1, 2, 3))
