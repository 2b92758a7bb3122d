"""Exits are truncated models: their states, logits, losses and gradients are the same."""

import re
from typing import Any

import pytest
import torch
import transformers

from lightning_kd.functional import linear_cross_entropy
from lightning_kd.nn import DecoderStack, ending_at, exit_states, truncated
from lightning_kd.nn.sorted_exits import head_loss
from tests.decoders import DEPTH, EXITS, FAMILIES, batch, independently_cut, labels, made

CASES = [(family, tied) for family in FAMILIES for tied in (False, True)]
every_model = pytest.mark.parametrize(("family", "tied"), CASES)


@every_model
def test_exit_logits_are_those_of_a_model_that_ends_there(family, tied, tmp_path) -> None:
    model, tokens = made(family, tied), batch()
    stack = DecoderStack.of(model)
    with torch.no_grad():
        states = exit_states(model, EXITS, **tokens)
        assert list(states) == EXITS
        for depth in EXITS:
            expected = independently_cut(model, depth)(**tokens).logits
            assert torch.equal(stack.logits(states[depth]), expected)
            for share in (False, True):
                cut: Any = truncated(model, depth, share=share, exits=EXITS)
                assert torch.equal(cut(**tokens).logits, expected)
            folder = tmp_path / f"{depth}"
            cut.save_pretrained(folder)
            again = transformers.AutoModelForCausalLM.from_pretrained(folder)
            assert torch.equal(again(**tokens).logits, expected)
            assert type(again) is type(model)
            assert len(DecoderStack.of(again).layers) == again.config.num_hidden_layers == depth
            assert again.config.sorted_exits == [n for n in EXITS if n <= depth]
    assert len(stack.layers) == model.config.num_hidden_layers == DEPTH


def test_a_shared_cut_is_the_same_memory_and_a_copy_is_not() -> None:
    model: Any = made("llama", tied=True)
    shared: Any = truncated(model, 2, share=True)
    copied: Any = truncated(model, 2)
    assert shared.lm_head.weight is model.lm_head.weight is shared.model.embed_tokens.weight
    assert shared.model.layers[1].mlp.up_proj.weight is model.model.layers[1].mlp.up_proj.weight
    assert copied.lm_head.weight is copied.model.embed_tokens.weight is not model.lm_head.weight
    assert sum(p.numel() for p in copied.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pass_to_a_shallow_exit_runs_no_deeper_block(family) -> None:
    model = made(family)
    ran: list[int] = []
    for number, layer in enumerate(DecoderStack.of(model).layers, 1):
        layer.register_forward_hook(lambda *_, n=number: ran.append(n))
    exit_states(model, [2, 3], **batch())
    assert ran == [1, 2, 3]
    exit_states(model, [6], **batch())
    assert ran == [1, 2, 3, 1, 2, 3, 4, 5, 6]


def test_the_last_state_is_not_normalized_twice() -> None:
    model, tokens = made("llama"), batch()
    output = model(**tokens, output_hidden_states=True)
    state = exit_states(model, [DEPTH], **tokens)[DEPTH]
    assert torch.equal(DecoderStack.of(model).logits(state), output.logits)
    assert not torch.allclose(state, output.hidden_states[-1])
    assert torch.equal(exit_states(model, [4], **tokens)[4], output.hidden_states[4])


def sorted_loss(model, tokens, wanted, exits) -> torch.Tensor:
    stack = DecoderStack.of(model)
    states = exit_states(stack, exits, **tokens)
    targets = wanted[:, 1:].flatten()
    losses = [
        linear_cross_entropy(
            stack.norm(states[n])[:, :-1].flatten(0, 1), stack.head.weight, targets, 5
        )
        for n in exits
    ]
    return torch.stack(losses).sum() / (targets >= 0).sum() / len(exits)


@every_model
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_sorted_loss_is_the_mean_of_the_truncated_models(family, tied, checkpointing) -> None:
    model, tokens = made(family, tied), batch()
    wanted = labels(tokens)
    if checkpointing:
        model.activation_checkpointing_enable()
        model.train()  # these models have no dropout
    ours = sorted_loss(model, tokens, wanted, EXITS)
    ours.backward()
    total = torch.zeros(())
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for depth in EXITS:
        cut = independently_cut(model, depth)
        loss = cut(**tokens, labels=wanted).loss / len(EXITS)
        loss.backward()
        total += loss.detach()
        for name, p in cut.named_parameters():
            assert p.grad is not None
            sums[name] += p.grad
    assert abs(float(ours.detach() - total)) < 1e-6
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, sums[name], atol=1e-6, rtol=1e-4)


def test_no_gradient_goes_above_an_exit() -> None:
    model, tokens = made("llama"), batch()
    sorted_loss(model, tokens, labels(tokens), [2]).backward()
    stack = DecoderStack.of(model)
    for number, layer in enumerate(stack.layers, 1):
        touched = [p.grad is not None and bool(p.grad.any()) for p in layer.parameters()]
        assert all(touched) if number <= 2 else not any(touched)
    for shared in (stack.norm, stack.head):
        (gradient,) = (p.grad for p in shared.parameters())
        assert gradient is not None
        assert gradient.any()


def test_masked_labels_do_not_count() -> None:
    model, tokens = made("llama"), batch()
    wanted = labels(tokens)
    loss = sorted_loss(model, tokens, wanted, EXITS)
    first_rows = {key: value[:2] for key, value in tokens.items()}
    alone = sorted_loss(model, first_rows, wanted[:2], EXITS)
    torch.testing.assert_close(loss, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("exits", "words"),
    [
        ([], "ascending numbers of blocks from 1 to 6, got []"),
        ([2, 2], "ascending numbers of blocks from 1 to 6, got [2, 2]"),
        ([4, 2], "ascending numbers of blocks from 1 to 6, got [4, 2]"),
        ([0, 2], "the model has exits 1 to 6, got 0"),
        ([7], "the model has exits 1 to 6, got 7"),
        ([True, 2], "the model has exits 1 to 6, got True"),
    ],
)
def test_wrong_exits_are_named(exits, words) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        exit_states(made("llama"), exits, **batch())


def test_a_wrong_depth_is_named() -> None:
    with pytest.raises(ValueError, match="the model has exits 1 to 6, got 7"):
        truncated(made("llama"), 7)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_that_ends_early_writes_what_its_truncation_writes(family) -> None:
    model, tokens = made(family), {k: v[:1] for k, v in batch().items()}
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    for depth in EXITS:
        cut = truncated(model, depth)
        with ending_at(model, depth):
            written = model.generate(**tokens, **settings)
        assert torch.equal(written, cut.generate(**tokens, **settings))  # type: ignore[operator]
    assert len(DecoderStack.of(model).layers) == DEPTH


def test_a_head_of_its_own_is_in_use_only_within_the_block() -> None:
    model, tokens = made("llama"), batch()
    own = torch.nn.Linear(32, 97, bias=False)
    before = model(**tokens).logits
    with ending_at(model, 2, own), torch.no_grad():
        state = exit_states(model, [2], **tokens)[2]
        assert torch.equal(model(**tokens).logits, own(model.model.norm(state)))
    with pytest.raises(RuntimeError, match="stop"), ending_at(model, 2, own):
        raise RuntimeError("stop")
    assert torch.equal(model(**tokens).logits, before)


def test_a_head_that_must_be_called_gives_the_same_loss_and_gradients() -> None:
    """ZeRO-3 marks the weights that it spreads over processes."""
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(9, 32, generator=generator).requires_grad_() for _ in range(2)]
    targets = torch.randint(97, (9,), generator=generator)
    weights = torch.rand(2, 9, generator=generator)
    head = torch.nn.Linear(32, 97, bias=False)
    leaves = [*states, head.weight]
    loss, losses = head_loss(head, states, targets, weights, 4)
    expected = torch.autograd.grad(loss, leaves)
    head.weight.ds_id = 0  # type: ignore[attr-defined]
    called, again = head_loss(head, states, targets, weights, 4)
    torch.testing.assert_close([called, again], [loss, losses])
    found = torch.autograd.grad(called, leaves)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_a_head_with_a_bias_is_refused() -> None:
    with pytest.raises(TypeError, match="has a bias"):
        head_loss(torch.nn.Linear(2, 3), [], torch.zeros(0).long(), torch.zeros(0, 0), 1)
