"""Live bytes, counted by hand."""

import torch

from lightning_kd.planning.live import LiveBytes, tensor_bytes


def test_what_autograd_keeps_is_alive_and_views_are_one() -> None:
    x = torch.ones(10, requires_grad=True)
    with LiveBytes() as live:
        live.ignore([x])
        made = x.exp().view(5, 2).sum()  # exp keeps its output: 40 bytes; the sum is 4
        assert live.now == (44, 0, 0)
        del made
        assert live.now == (0, 0, 0)


def test_the_peak_is_in_the_history() -> None:
    with LiveBytes() as live:
        first = torch.zeros(100)
        second = first + 1
        del first
        third = second[:10].clone()
        del second, third
    assert max(sum(moment) for moment in live.history) == 800
    assert live.now == (0, 0, 0)


def test_gradients_and_logits_have_their_own_place() -> None:
    weight = torch.ones(4, 7, requires_grad=True)
    live = LiveBytes(vocabulary=7)
    weight.register_post_accumulate_grad_hook(lambda p: live.is_gradient(p.grad))
    with live:
        live.ignore([weight])
        logits = torch.ones(2, 4) @ weight
        assert live.now == (32, 0, 56)
        logits.sum().backward()
        del logits
        assert live.now == (0, 112, 0)


def test_storages_are_counted_once() -> None:
    one = torch.zeros(3, 3)
    assert tensor_bytes([one, one[0], one.t(), torch.zeros(1)]) == 40
