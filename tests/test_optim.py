"""NestedAdamW against torch's AdamW and against one AdamW per component; groups."""

import copy
from typing import Any

import lightning.pytorch.strategies
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_kd.optim import (
    NestedAdamW,
    decay_groups,
    nested_groups,
    require_whole_parameters,
)

R, D, M = 4, 3, 5
SETTINGS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95)}


class Weights(nn.Module):
    """Two factors, components along axis 0 and axis 1, and a head that is always dense."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(R, D))
        self.b = nn.Parameter(torch.randn(R, M).t())
        self.head = nn.Parameter(torch.randn(3, 2))
        self.active = slice(0, R)

    def optimizer(self, **changes: Any) -> NestedAdamW:
        groups: list[dict[str, Any]] = [
            {"params": [self.a], "component_dim": 0},
            {"params": [self.b], "component_dim": 1},
            {"params": [self.head]},
        ]
        return NestedAdamW(groups, lambda: self.active, **{**SETTINGS, **changes})

    def random_gradients(self, step: int) -> None:
        """Gradients as a sliced forward leaves them: zero outside the active set."""
        generator = torch.Generator().manual_seed(step)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for factor in (self.a.grad, _t(self.b.grad)):
            assert factor is not None
            factor[: self.active.start] = 0
            factor[self.active.stop :] = 0

    def components(self) -> list[list[Tensor]]:
        return [[self.a[i], self.b[:, i]] for i in range(R)]


def _t(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.t()


def frozen_slices(steps: int, seed: int = 0) -> list[slice]:
    """Active sets of both update rules, at random."""
    generator = np.random.default_rng(seed)
    stops = generator.integers(1, R + 1, steps).tolist()
    return [slice(generator.integers(0, stop).item(), stop) for stop in stops]


def test_with_everything_active_it_is_torch_s_adamw() -> None:
    ours = Weights()
    theirs = copy.deepcopy(ours)
    optimizer = ours.optimizer()
    reference = torch.optim.AdamW(theirs.parameters(), **SETTINGS)
    for step in range(30):
        ours.random_gradients(step)
        theirs.random_gradients(step)
        optimizer.step()
        reference.step()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_the_first_step_is_right_to_the_last_digits() -> None:
    """1 - 0.999 in single precision is off by 1e-5; the first step would be, too."""
    weight = nn.Parameter(torch.zeros(1, 1))
    optimizer = NestedAdamW(
        [{"params": [weight], "component_dim": 0}], lambda: slice(0, 1), lr=1.0, weight_decay=0.0
    )
    weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    assert weight.item() == pytest.approx(-1, abs=3e-7)


def test_each_component_takes_the_steps_of_its_own_adamw() -> None:
    """Independent reference: one torch AdamW per component, called only when it is active."""
    ours = Weights()
    optimizer = ours.optimizer()
    alone = [[nn.Parameter(t.detach().clone()) for t in pair] for pair in ours.components()]
    references: list[Optimizer] = [torch.optim.AdamW(pair, **SETTINGS) for pair in alone]
    head = nn.Parameter(ours.head.detach().clone())
    dense = torch.optim.AdamW([head], **SETTINGS)
    for step, active in enumerate(frozen_slices(40)):
        ours.active = active
        ours.random_gradients(step)
        assert ours.a.grad is not None
        assert ours.b.grad is not None
        for i in range(active.start, active.stop):
            alone[i][0].grad, alone[i][1].grad = ours.a.grad[i].clone(), ours.b.grad[:, i].clone()
            references[i].step()
        head.grad = ours.head.grad
        optimizer.step()
        dense.step()
    for pair, reference in zip(ours.components(), alone, strict=True):
        for mine, other in zip(pair, reference, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.head, head, rtol=1e-6, atol=1e-6)


def test_what_is_not_active_keeps_every_bit_of_value_moments_and_age() -> None:  # A6
    ours = Weights()
    optimizer = ours.optimizer()
    ours.random_gradients(0)
    optimizer.step()
    for step, active in enumerate(frozen_slices(20)):
        ours.active = active
        before = snapshot(ours, optimizer)
        ours.random_gradients(step)
        optimizer.step()
        after = snapshot(ours, optimizer)
        for i in range(R):
            same = [torch.equal(x, y) for x, y in zip(before[i], after[i], strict=True)]
            assert all(same) if not active.start <= i < active.stop else not any(same)


def snapshot(weights: Weights, optimizer: NestedAdamW) -> list[list[Tensor]]:
    """Everything that belongs to each component, as copies."""
    found: list[list[Tensor]] = [[] for _ in range(R)]
    for parameter in (weights.a, weights.b):
        state = optimizer.state[parameter]
        tensors = [parameter.detach(), state["exp_avg"], state["exp_avg_sq"]]
        turned = [t if parameter is weights.a else t.t() for t in tensors]
        for i in range(R):
            found[i] += [t[i].clone() for t in (*turned, state["step"])]
    return found


def test_the_state_goes_through_a_file(tmp_path) -> None:
    whole, resumed = Weights(), Weights()
    resumed.load_state_dict(whole.state_dict())
    optimizers = whole.optimizer(), resumed.optimizer()
    slices = frozen_slices(20)

    def run(weights: Weights, optimizer: NestedAdamW, steps: range) -> None:
        for step in steps:
            weights.active = slices[step]
            weights.random_gradients(step)
            optimizer.step()

    run(whole, optimizers[0], range(10))
    saved = {"weights": whole.state_dict(), "optimizer": optimizers[0].state_dict()}
    torch.save(saved, tmp_path / "state.pt")
    run(whole, optimizers[0], range(10, 20))

    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(loaded["weights"])
    optimizers[1].load_state_dict(loaded["optimizer"])
    ages = optimizers[1].state[resumed.a]["step"]
    expected = [sum(s.start <= i < s.stop for s in slices[:10]) for i in range(R)]
    assert ages.tolist() == expected
    run(resumed, optimizers[1], range(10, 20))
    for mine, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_parameter_without_gradient_stays() -> None:
    ours = Weights()
    optimizer = ours.optimizer()
    ours.random_gradients(0)
    ours.a.grad = None
    before = ours.a.detach().clone()
    optimizer.step()
    assert torch.equal(ours.a, before)


def test_the_active_set_is_asked_for_after_the_closure() -> None:
    ours = Weights()
    optimizer = ours.optimizer()
    before = ours.a.detach().clone()

    def closure() -> float:
        assert torch.is_grad_enabled()
        ours.active = slice(1, 2)
        ours.random_gradients(0)
        return 2.5

    assert optimizer.step(closure) == 2.5
    changed = (ours.a != before).any(1)
    assert changed.tolist() == [False, True, False, False]


def test_each_group_has_its_own_rate_and_decay() -> None:
    ours = Weights()
    groups = [
        {"params": [ours.a], "component_dim": 0, "lr": 0.0},
        {"params": [ours.head], "weight_decay": 0.5, "lr": 0.1},
    ]
    optimizer = NestedAdamW(groups, lambda: ours.active, weight_decay=0.0)
    a, head = ours.a.detach().clone(), ours.head.detach().clone()
    ours.a.grad, ours.head.grad = torch.ones_like(a), torch.zeros_like(head)
    optimizer.step()
    assert torch.equal(ours.a, a)
    torch.testing.assert_close(ours.head.detach(), head * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"eps": -1.0}, "eps must be at least 0, got -1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"betas": (1.0, 0.9)}, r"betas must be in \[0, 1\), got \(1.0, 0.9\)"),
        ({"betas": (0.9, -0.1)}, r"betas must be in \[0, 1\), got"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        Weights().optimizer(**changes)


def test_matrices_decay_and_vectors_do_not_and_frozen_ones_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model[2].requires_grad_(requires_grad=False)
    decaying, rest = decay_groups(model.named_parameters(), 0.1)
    assert [p is model[0].weight for p in decaying["params"]] == [True]
    assert decaying["weight_decay"] == 0.1
    assert [tuple(p.shape) for p in rest["params"]] == [(3,), (3,), (3,)]
    assert rest["weight_decay"] == 0


def test_groups_of_nested_factors_name_their_axes_and_the_rest_decays_as_usual() -> None:
    weights, bias = Weights(), nn.Parameter(torch.zeros(2))
    named = [*weights.named_parameters(), ("bias", bias)]
    a, b, head, vector = nested_groups([(weights.a, weights.b)], named, 0.1)
    assert [g["params"][0] is p for g, p in ((a, weights.a), (b, weights.b))] == [True, True]
    assert (a["component_dim"], b["component_dim"]) == (0, 1)
    assert head["params"][0] is weights.head
    assert vector["params"][0] is bias
    assert [group["weight_decay"] for group in (a, b, head, vector)] == [0.1, 0.1, 0.1, 0.0]
    assert {group.get("component_dim") for group in (head, vector)} == {None}


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_strategies_that_hide_components_are_refused_also_their_subclasses(name) -> None:
    kind = getattr(lightning.pytorch.strategies, name)
    for cls in (kind, type("Mine", (kind,), {})):
        with pytest.raises(ValueError, match=f"{name} hides .*optimizer_semantics dense"):
            require_whole_parameters(object.__new__(cls))


def test_other_strategies_are_accepted() -> None:
    require_whole_parameters(lightning.pytorch.strategies.DDPStrategy())
