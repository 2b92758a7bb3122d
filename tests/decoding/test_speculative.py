"""Self-speculative text is the full model's, token for token."""

import pytest
import torch

from lightning_kd.decoding import greedy, self_speculative
from tests.decoding.models import FAMILIES, agreeing, decoder, generated, prompt, reference

WINDOWS = [1, 4, 7, "auto", "heuristic"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("draft", [2, 4, 5])
def test_tokens_are_those_of_greedy_decoding(family, draft, window) -> None:
    model, (ids, theirs) = agreeing(family), reference(family)
    made = self_speculative(model, ids, 60, draft=draft, window=window, eos=())
    assert made.tokens == theirs == greedy(model, ids, 60, eos=()).tokens
    assert len(made.tokens) == 60 == len(made.depths)
    assert 1 + made.accepted + made.rounds == 60


# not GPT-2, whose model in transformers does not shorten itself for it
@pytest.mark.parametrize("family", ["llama", "tied llama", "qwen2", "mistral"])
@pytest.mark.parametrize("draft", [2, 4, 5])
def test_tokens_are_those_of_transformers_early_exit(family, draft) -> None:
    model, ids = agreeing(family), prompt(seed=1)
    theirs = generated(model, ids, assistant_early_exit=draft)
    assert self_speculative(model, ids, 60, draft=draft, eos=()).tokens == theirs


def test_both_outcomes_of_a_draft_were_tested() -> None:
    for family in FAMILIES:
        made = self_speculative(agreeing(family), prompt(), 60, draft=2, window=4, eos=())
        assert 0.1 < made.acceptance < 0.9, family


def test_a_draft_that_is_always_right_makes_the_fewest_rounds() -> None:
    model = decoder()
    with torch.no_grad():  # blocks 4 to 6 add nothing
        for block in list(model.model.layers)[3:]:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    made = self_speculative(model, prompt(), 61, draft=3, window=4, eos=())
    assert made.tokens == greedy(model, prompt(), 61, depth=3, eos=()).tokens
    assert made.acceptance == 1
    assert made.rounds == 60 / 5  # after the first token, five a round
    assert made.num_heads == 1 + 12 * (4 + 5)


@pytest.mark.parametrize("window", WINDOWS)
def test_stops_at_the_end_of_text_wherever_in_a_round(window) -> None:
    model, ids = agreeing("llama"), prompt()
    tokens = greedy(model, ids, 30, eos=()).tokens
    for end in sorted(set(tokens)):
        made = self_speculative(model, ids, 30, draft=2, window=window, eos=end)
        assert made.tokens == tokens[: tokens.index(end) + 1]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_makes_no_more_tokens_than_asked_for(count) -> None:
    made = self_speculative(decoder(), prompt(), count, draft=2, window=7, eos=())
    assert made.tokens == greedy(decoder(), prompt(), count, eos=()).tokens


def test_the_last_position_of_the_context_is_used() -> None:
    made = self_speculative(decoder(), prompt(100), 28, draft=2, window=7, eos=())
    assert made.tokens == greedy(decoder(), prompt(100), 28, eos=()).tokens


@pytest.mark.parametrize("draft", [0, 6, 7])
def test_a_draft_that_is_no_smaller_model_is_refused(draft) -> None:
    with pytest.raises(ValueError, match=rf"{draft}"):
        self_speculative(decoder(), prompt(), 5, draft=draft)


@pytest.mark.parametrize("window", [0, -2, "adaptive", 2.5])
def test_an_unknown_window_is_refused(window) -> None:
    with pytest.raises(ValueError, match=f"auto or heuristic, got {window!r}"):
        self_speculative(decoder(), prompt(), 5, draft=2, window=window)
