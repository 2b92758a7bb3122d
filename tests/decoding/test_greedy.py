"""Greedy decoding at any depth is transformers', from another loop."""

import pytest
import torch

from lightning_kd.decoding import Session, greedy
from lightning_kd.decoding.session import inference
from tests.decoding.models import FAMILIES, cut, decoder, generated, prompt


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", [2, 6])
def test_tokens_are_those_of_transformers_on_the_cut_model(family, depth) -> None:
    model, ids = decoder(family), prompt()
    made = greedy(model, ids, 60, depth=depth, eos=())
    assert made.tokens == generated(cut(model, depth), ids)
    assert len(set(made.tokens)) > 5  # no text that repeats one token
    assert made.average_depth == depth
    assert made.num_heads == 60


@pytest.mark.parametrize("family", ["llama", "sliding mistral", "gpt2"])
def test_eager_attention_gives_the_same(family) -> None:
    model, ids = decoder(family), prompt()
    expected = greedy(model, ids, 40, eos=()).tokens
    model.set_attn_implementation("eager")
    assert greedy(model, ids, 40, eos=()).tokens == expected == generated(model, ids, 40)


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_a_text_give_the_logits_of_the_whole(family) -> None:
    model, ids = decoder(family), prompt(20)
    with inference(model):
        session, pieces = Session(model, 20), []
        for begin, end in ((0, 5), (5, 6), (6, 18), (18, 20)):
            hidden = session.embed(ids[0, begin:end], begin)
            pieces.append(session.logits(session.run(session.run(hidden, 0, 4), 4, 6)))
        whole = model(ids).logits[0]
    torch.testing.assert_close(torch.cat(pieces), whole, atol=2e-5, rtol=0)


def test_stops_after_the_end_of_text() -> None:
    model, ids = decoder(), prompt()
    tokens = greedy(model, ids, 20, eos=()).tokens
    end = tokens[7]
    first = tokens.index(end)
    for eos in (end, [end, 1000]):
        assert greedy(model, ids, 20, eos=eos).tokens == tokens[: first + 1]
    model.generation_config.eos_token_id = end
    assert greedy(model, ids, 20).tokens == tokens[: first + 1]
    assert greedy(model, ids, 20, eos=()).tokens == tokens


def test_a_model_in_training_decodes_without_dropout_and_stays_in_training() -> None:
    model = decoder("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    expected = greedy(model, prompt(), 20, eos=()).tokens
    model.train()
    model.transformer.h[1].eval()
    assert greedy(model, prompt(), 20, eos=()).tokens == expected
    assert model.training
    assert model.transformer.h[0].mlp.training
    assert not model.transformer.h[1].training


@pytest.mark.parametrize("given", [[5, 6, 7], torch.tensor([5, 6, 7]), torch.tensor([[5, 6, 7]])])
def test_prompts_of_any_form(given) -> None:
    assert greedy(decoder(), given, 5).tokens == generated(decoder(), torch.tensor([[5, 6, 7]]), 5)


@pytest.mark.parametrize("depth", [0, 7, -1])
def test_an_exit_outside_the_model_is_refused(depth) -> None:
    with pytest.raises(ValueError, match=rf"exits 1 to 6, got {depth}"):
        greedy(decoder(), prompt(), 5, depth=depth)


def test_text_beyond_the_context_is_refused_with_both_lengths() -> None:
    assert len(greedy(decoder(), prompt(100), 28, eos=()).tokens) == 28
    with pytest.raises(ValueError, match=r"129 positions, the model has 128"):
        greedy(decoder(), prompt(100), 29)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    stretched = decoder(rope_parameters={**rope, "original_max_position_embeddings": 32})
    with pytest.raises(ValueError, match="dynamic rotations change beyond 32 positions, got 33"):
        greedy(stretched, prompt(30), 3)


def test_a_model_without_a_known_stack_is_named() -> None:
    from transformers import BertConfig, BertForMaskedLM, GemmaConfig, GemmaForCausalLM

    small = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    with pytest.raises(TypeError, match="BertForMaskedLM has no layer stack"):
        greedy(BertForMaskedLM(BertConfig(**small)), [1])
    gemma = GemmaConfig(**small, intermediate_size=4, head_dim=4, num_key_value_heads=1)
    with pytest.raises(TypeError, match=r"GemmaForCausalLM \(model_type gemma\)"):
        greedy(GemmaForCausalLM(gemma), [1])


def test_bad_prompts_and_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2; call once for each"):
        greedy(decoder(), torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="no tokens"):
        greedy(decoder(), [])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        greedy(decoder(), [1], 0)


def test_an_attention_without_known_masks_is_refused() -> None:
    model = decoder()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        greedy(model, [1])


def test_blocks_that_were_left_out_come_first() -> None:
    model = decoder()
    with inference(model):
        session = Session(model, 8)
        session.run(session.embed(prompt()[0, :3], 0), 0, 2)
        hidden = session.embed(prompt()[0, 3:4], 3)
        with pytest.raises(RuntimeError, match=r"\[3, 3, 0\]"):
            session.run(hidden, 0, 3)
        with pytest.raises(IndexError, match="room for 8"):
            session.run(session.embed(prompt()[0, :6], 3), 0, 1)
