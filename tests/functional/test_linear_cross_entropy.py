"""Chunked cross-entropy against the plain one: values, gradients, and what stays in memory."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_kd.functional import linear_cross_entropy, linear_cross_entropy_sum

TOKENS, WIDTH, VOCABULARY, EXITS = 23, 8, 97, 3


def inputs(dtype=torch.float32, exits=EXITS):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    labels[[2, 9]] = -100
    states = [normal(TOKENS, WIDTH) for _ in range(exits)]
    return states, normal(VOCABULARY, WIDTH), labels, torch.rand(exits, TOKENS, generator=generator)


def plain(states, weight, labels, weights):
    losses = [cross_entropy(h @ weight.t(), labels, reduction="none") for h in states]
    return (weights * torch.stack(losses)).sum(), torch.stack(losses)


def gradients(loss, *leaves):
    return list(torch.autograd.grad(loss, leaves, retain_graph=True))


def assert_close(ours, theirs, tolerance=1e-6):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 7, TOKENS, 4096])
def test_unreduced_losses_and_gradients_are_the_plain_ones(chunk_size) -> None:
    (hidden, *_), weight, labels, weights = inputs()
    ours = linear_cross_entropy(hidden, weight, labels, chunk_size)
    theirs = cross_entropy(hidden @ weight.t(), labels, reduction="none")
    assert_close([ours], [theirs])
    assert ours[2] == 0
    upstream = weights[0] - 0.3  # no two tokens weigh the same
    mine = gradients((ours * upstream).sum(), hidden, weight)
    assert_close(mine, gradients((theirs * upstream).sum(), hidden, weight))
    assert not mine[0][2].any()


@pytest.mark.parametrize("chunk_size", [1, 7, 4096])
def test_the_sum_over_exits_and_its_gradients_are_the_plain_ones(chunk_size) -> None:
    states, weight, labels, weights = inputs()
    ours, losses = linear_cross_entropy_sum(states, weight, labels, weights, chunk_size)
    theirs, expected = plain(states, weight, labels, weights)
    assert_close([ours, losses], [theirs, expected])
    leaves = [*states, weight]
    assert_close(gradients(ours / 3, *leaves), gradients(theirs / 3, *leaves))


def test_a_frozen_head_and_frozen_states_get_no_gradient() -> None:
    states, weight, labels, weights = inputs()
    frozen = [state.detach() for state in states]
    loss, _ = linear_cross_entropy_sum([*frozen[:2], states[2]], weight, labels, weights)
    (of_state,) = gradients(loss, states[2])
    expected, _ = plain(states, weight.detach(), labels, weights)
    assert_close([of_state], gradients(expected, states[2]))
    loss, _ = linear_cross_entropy_sum(states, weight.detach(), labels, weights)
    assert_close(gradients(loss, *states), gradients(expected, *states))


def test_gradients_are_right_by_finite_differences() -> None:
    states, weight, labels, weights = inputs(torch.float64)
    check = torch.autograd.gradcheck
    assert check(lambda h, w: linear_cross_entropy(h, w, labels, 5), (states[0], weight))
    assert check(
        lambda w, *h: linear_cross_entropy_sum(h, w, labels, weights, 5)[0], (weight, *states)
    )


def test_a_second_backward_pass_repeats_the_first() -> None:
    states, weight, labels, weights = inputs()
    loss, _ = linear_cross_entropy_sum(states, weight, labels, weights)
    first = torch.autograd.grad(loss, [*states, weight], retain_graph=True)
    assert_close(torch.autograd.grad(loss, [*states, weight]), first, 0.0)


def test_without_gradients_nothing_else_changes() -> None:
    states, weight, labels, weights = inputs()
    loss, losses = linear_cross_entropy_sum(states, weight, labels, weights)
    with torch.no_grad():
        again = linear_cross_entropy_sum(states, weight, labels, weights)
    assert_close(again, [loss.detach(), losses])


def test_autocast_multiplies_in_bf16_and_sums_in_fp32() -> None:
    states, weight, labels, weights = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        ours, losses = linear_cross_entropy_sum(states, weight, labels, weights, 7)
        alone = linear_cross_entropy(states[0], weight, labels, 7)
    assert losses.dtype is alone.dtype is torch.float32
    exact = [
        cross_entropy((h.bfloat16() @ weight.bfloat16().t()).float(), labels, reduction="none")
        for h in states
    ]
    assert_close([losses, alone], [torch.stack(exact), exact[0]])
    expected = gradients(plain(states, weight, labels, weights)[0], *states, weight)
    mine = gradients(ours, *states, weight)
    assert {g.dtype for g in mine} == {torch.float32}
    for one, other in zip(mine, expected, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("reduced", [False, True])
def test_nothing_as_wide_as_the_vocabulary_is_kept_but_the_head(reduced) -> None:
    states, weight, labels, weights = inputs()
    saved = []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if reduced:
            linear_cross_entropy_sum(states, weight, labels, weights, 7)
        else:
            linear_cross_entropy(states[0], weight, labels, 7)
    assert (VOCABULARY, WIDTH) in saved
    assert {shape for shape in saved if VOCABULARY in shape} == {(VOCABULARY, WIDTH)}


def test_errors_name_the_value() -> None:
    states, weight, labels, weights = inputs()
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        linear_cross_entropy(states[0], weight, labels, 0)
    with pytest.raises(ValueError, match="give at least one"):
        linear_cross_entropy_sum([], weight, labels, weights)
