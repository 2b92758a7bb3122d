"""The update rules of DyLoRA on a tiny BERT: which weights a step may move (checks A2, A4-A7)."""

import copy
import random

import pytest
import torch
from torch import Tensor

from lightning_kd.methods import DyLoRA, LoRA
from lightning_kd.nn import DynamicLoRALinear
from tests import tiny

TASK = tiny.TASKS["classification"]
R = 4
RANKS = range(1, R + 1)


def made(**settings) -> DyLoRA:
    """Ready to train, with an adapter that does something; equal arguments give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = DyLoRA(tiny.model("bert"), TASK, max_rank=R, **settings)
    return tiny.filled(module)


def loss_backward(module: DyLoRA | LoRA, seed: int = 0) -> Tensor:
    module.zero_grad()
    loss: Tensor = module.objective(tiny.batch(seed=seed))["hard"]
    loss.backward()
    return loss.detach()


def components(layer: DynamicLoRALinear, grad: bool = False) -> list[Tensor]:
    """Row i of A and column i of B in one vector, for each i."""
    a: Tensor | None = layer.lora_A.grad if grad else layer.lora_A.detach()
    b: Tensor | None = layer.lora_B.grad if grad else layer.lora_B.detach()
    assert a is not None
    assert b is not None
    return [torch.cat([a[i], b[:, i]]).clone() for i in range(R)]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
@torch.no_grad()
def test_starts_as_the_plain_model_at_every_rank(kind) -> None:  # A2
    batch = tiny.batch()
    plain = TASK.predict(tiny.model(kind), batch).logits
    module = DyLoRA(tiny.model(kind), TASK, max_rank=R)
    for rank in RANKS:
        module.resize(rank)
        assert torch.equal(module.predict(batch).logits, plain)


@pytest.mark.parametrize("rank", RANKS)
def test_full_update_gives_gradients_to_all_components_of_the_rank(rank) -> None:  # A4
    module = made(update="full")
    module.resize(rank)
    loss_backward(module)
    for layer in module.adapters.values():
        moved = [bool(g.any()) for g in components(layer, grad=True)]
        assert moved == [i < rank for i in range(R)]


@pytest.mark.parametrize("rank", RANKS)
def test_frozen_update_gives_gradients_to_the_last_component_only(rank) -> None:  # A5
    full, frozen = made(update="full"), made(update="frozen")
    for module in (full, frozen):
        module.resize(rank)
        loss_backward(module)
    pairs = list(zip(frozen.adapters.values(), full.adapters.values(), strict=True))
    for ours, theirs in pairs:
        moved = [bool(g.any()) for g in components(ours, grad=True)]
        assert moved == [i == rank - 1 for i in range(R)]
        torch.testing.assert_close(
            components(ours, grad=True)[rank - 1], components(theirs, grad=True)[rank - 1]
        )
    # what flows to the layers below does not know the rule: the embeddings would see the same
    assert torch.equal(_input_gradient(frozen, rank), _input_gradient(full, rank))


def _input_gradient(module: DyLoRA, rank: int) -> Tensor:
    module.resize(rank)
    embeddings = module.student.get_input_embeddings().weight  # type: ignore[operator]
    embeddings.requires_grad_()
    loss_backward(module)
    grad: Tensor = embeddings.grad
    return grad


@pytest.mark.parametrize(("rank", "trained"), [(1, [0]), (2, [1]), (4, [2, 3])])
def test_with_a_list_of_ranks_the_frozen_part_ends_at_the_next_smaller_one(rank, trained) -> None:
    module = made(sampler=[1, 2, 4])
    module.resize(rank)
    loss_backward(module)
    layer = next(iter(module.adapters.values()))
    moved = [bool(g.any()) for g in components(layer, grad=True)]
    assert moved == [i in trained for i in range(R)]


def test_the_smallest_rank_trains_all_its_components() -> None:
    module = made(min_rank=3)
    module.resize(3)
    loss_backward(module)
    layer = next(iter(module.adapters.values()))
    assert [bool(g.any()) for g in components(layer, grad=True)] == [True, True, True, False]


def steps(module: DyLoRA, count: int = 50) -> list[tuple[int, list[bool]]]:
    """Random ranks; after each step, which components of value and moments changed at all."""
    optimizer = module.make_optimizer()
    generator = random.Random(0)
    found = []
    for step in range(count):
        rank = generator.randint(1, R)
        module.resize(rank)
        before = _everything(module, optimizer)
        loss_backward(module, seed=step)
        optimizer.step()
        after = _everything(module, optimizer)
        if step:  # the first step makes the optimizer's state
            same = [torch.equal(x, y) for x, y in zip(before, after, strict=True)]
            found.append((rank, [not s for s in same]))
    return found


def _everything(module: DyLoRA, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parts: list[list[Tensor]] = [[] for _ in range(R)]
    for layer in module.adapters.values():
        for parameter, turn in ((layer.lora_A, False), (layer.lora_B, True)):
            state = optimizer.state[parameter]
            moments = [state[k] for k in ("exp_avg", "exp_avg_sq") if k in state]
            for tensor in (parameter.detach(), *moments):
                for i, row in enumerate(tensor.t() if turn else tensor):
                    parts[i].append(row.clone())
    return [torch.cat(part) for part in parts]


@pytest.mark.parametrize("update", ["frozen", "full"])
def test_strict_leaves_all_other_components_bit_unchanged_for_fifty_steps(update) -> None:  # A6
    changes = steps(made(update=update, weight_decay=0.1))
    assert len(changes) == 49
    for rank, changed in changes:
        first = rank - 1 if update == "frozen" else 0
        assert changed == [first <= i < rank for i in range(R)]


def test_dense_moves_the_others_too() -> None:  # A7: what strict is there to prevent
    changes = steps(made(weight_decay=0.1, optimizer_semantics="dense"))
    for rank, changed in changes[R:]:
        assert [c for i, c in enumerate(changed) if i != rank - 1].count(True) >= R - 2


def test_the_head_learns_on_every_step_whatever_the_rank() -> None:
    module = made()
    optimizer = module.make_optimizer()
    for step, rank in enumerate((1, 4, 2, 2, 3)):
        module.resize(rank)
        head = {n: p.detach().clone() for n, p in module.named_parameters() if "classifier" in n}
        head |= {n: p.detach().clone() for n, p in module.named_parameters() if "pooler" in n}
        assert len(head) == 4
        loss_backward(module, seed=step)
        optimizer.step()
        after = dict(module.named_parameters())
        assert not any(torch.equal(before, after[name]) for name, before in head.items())


def _ours(peft_name: str) -> str:
    for part in ("base_model.model.", ".modules_to_save.default"):
        peft_name = peft_name.replace(part, "")
    return peft_name.replace(".default.weight", "")


@pytest.mark.parametrize("settings", [{"sampler": [R]}, {"min_rank": R}])
@pytest.mark.parametrize("update", ["frozen", "full"])
def test_always_the_largest_rank_is_peft_s_lora(settings, update) -> None:
    """The negative control; not bit for bit, since training takes the fused path."""
    ours = made(update=update, learning_rate=0.01, **settings)
    theirs = LoRA(tiny.model("bert"), TASK, rank=R, learning_rate=0.01)
    own = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(own[_ours(name)])
    optimizers = ours.make_optimizer(), theirs.make_optimizer()
    assert ours.sizes == [R]
    for step in range(8):
        ours.resize(ours.sampler.draw(step))
        losses = [loss_backward(module, seed=step) for module in (ours, theirs)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
        for optimizer in optimizers:
            optimizer.step()
    trained = {_ours(n): p for n, p in theirs.named_parameters() if p.requires_grad}
    assert set(trained) == {n for n, p in own.items() if p.requires_grad}
    for name, parameter in trained.items():
        torch.testing.assert_close(own[name], parameter, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
def test_activation_checkpointing_changes_no_gradient(kind, reentrant) -> None:  # A14
    plain = tiny.filled(DyLoRA(tiny.model(kind), TASK, max_rank=R))
    saving = copy.deepcopy(plain)
    saving.student.activation_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]
    if reentrant:
        saving.student.enable_input_require_grads()  # type: ignore[operator]
    for rank in (1, 3):
        for module in (plain, saving):
            module.student.train()
            module.resize(rank)
            loss_backward(module)
        theirs = dict(saving.named_parameters())
        for name, parameter in plain.named_parameters():
            other = theirs[name].grad
            assert (parameter.grad is None) == (other is None)
            if parameter.grad is not None:
                # the reentrant kind goes forward without gradients, which rounds in PEFT's order
                tolerance = {"rtol": 1e-4, "atol": 1e-6} if reentrant else {"rtol": 0, "atol": 0}
                torch.testing.assert_close(parameter.grad, other, **tolerance, msg=name)


def test_bf16_autocast_trains_float32_weights() -> None:
    module = made()
    optimizer = module.make_optimizer()
    module.resize(3)
    layer = next(iter(module.adapters.values()))
    before = components(layer)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.objective(tiny.batch())["hard"]
    loss.backward()
    exact = made()
    exact.resize(3)
    torch.testing.assert_close(loss.detach(), loss_backward(exact), rtol=0.05, atol=0.05)
    assert loss.dtype == layer.lora_A.grad.dtype == torch.float32  # type: ignore[union-attr]
    optimizer.step()
    changed = [not torch.equal(x, y) for x, y in zip(before, components(layer), strict=True)]
    assert changed == [False, False, True, False]
    assert torch.isfinite(layer.lora_A).all()


def test_bf16_mixed_precision_trains_and_keeps_float32_weights() -> None:
    module = made(learning_rate=0.01)
    before = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    tiny.trainer(precision="bf16-mixed").fit(module, tiny.loader(), tiny.loader())
    for name, parameter in module.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.isfinite(parameter).all()
        assert not parameter.requires_grad or not torch.equal(parameter, before[name])
