"""Dynamic exit: extreme thresholds are known models, and the cache is a full pass's."""

import copy
from typing import Any

import pytest
import torch

from lightning_kd.decoding import DynamicDecoder, Session, dynamic_exit, greedy
from lightning_kd.decoding.greedy import best, prefill
from lightning_kd.decoding.session import inference
from lightning_kd.functional import exit_confidence
from tests.decoding.models import FAMILIES, cut, decoder, generated, middling, prompt

KINDS = ["max_prob", "margin", "entropy"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("confidence", KINDS)
def test_never_sure_is_greedy_decoding(family, confidence) -> None:
    model, ids = decoder(family), prompt()
    options = {"exits": [2, 4], "confidence": confidence, "eos": ()}
    made = dynamic_exit(model, ids, 40, thresholds=1.01, **options)
    assert made.tokens == greedy(model, ids, 40, eos=()).tokens == generated(model, ids, 40)
    assert made.depths == [6] * 40
    assert made.num_heads == 1 + 39 * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_always_sure_is_the_smallest_model_after_the_full_models_first_token(family) -> None:
    model, ids = decoder(family), prompt()
    made = dynamic_exit(model, ids, 40, exits=[2, 4, 6], thresholds=0.0, eos=())
    first = generated(model, ids, 1)
    rest = generated(cut(model, 2), torch.cat([ids, torch.tensor([first])], 1), 39)
    assert made.tokens == first + rest
    assert made.depths == [6] + [2] * 39
    assert made.num_heads == 40


@pytest.mark.parametrize("family", FAMILIES)
def test_deep_tokens_and_the_flushed_cache_are_those_of_a_full_pass(family) -> None:
    """Logits within 2e-5 and keys and values within 5e-5, in float32."""
    model, ids = decoder(family), prompt()
    with inference(model):
        session = Session(model, 9 + 60)
        decoder_ = DynamicDecoder(session, [2, 4], middling(model, [2, 4], share=0.5))
        text = [*ids[0].tolist(), prefill(session, ids[0].tolist(), 6)]
        found = []
        for _ in range(59):
            logits, depth = decoder_.step(text[-1])
            found.append((logits, depth))
            text.append(best(logits))
        counts = [sum(depth == exit_ for _, depth in found) for exit_ in (2, 4, 6)]
        assert min(counts) >= 4, counts  # all three happen
        whole = model(torch.tensor([text[:-1]]), output_hidden_states=True)
        for place, (logits, depth) in enumerate(found, start=9):
            if depth == 6:
                torch.testing.assert_close(logits[0], whole.logits[0, place], atol=2e-5, rtol=0)
        decoder_.flush()
        full = Session(model, 9 + 60)
        full.run(full.embed(torch.tensor(text[:-1]), 0), 0, 6)
        for ours, theirs in zip(session.cache, full.cache, strict=True):
            assert ours.length == theirs.length == 9 + 59
            for mine, other in zip(ours.states, theirs.states, strict=True):
                torch.testing.assert_close(mine, other, atol=5e-5, rtol=0)


def test_the_cache_of_a_full_pass_is_transformers_own() -> None:
    from transformers import DynamicCache

    model, ids = decoder(), prompt(20)
    with inference(model):
        session = Session(model, 20)
        theirs: Any = DynamicCache(config=model.config)
        session.run(session.embed(ids[0], 0), 0, 6)
        model(ids, past_key_values=theirs)
    for cache, layer in zip(session.cache, theirs.layers, strict=True):
        torch.testing.assert_close(cache.states[0], layer.keys)
        torch.testing.assert_close(cache.states[1], layer.values)


@pytest.mark.parametrize("confidence", KINDS)
def test_every_token_comes_from_the_first_exit_that_is_sure(confidence) -> None:
    """Against a loop without cache, that reads the whole text with cut models for every token."""
    model, ids, exits = decoder(), prompt(), [2, 4, 6]
    thresholds = middling(model, [2, 4], confidence)
    made = dynamic_exit(
        model, ids, 30, exits=exits, thresholds=thresholds, confidence=confidence, eos=()
    )
    models = [cut(model, exit_) for exit_ in exits]
    text, depths = generated(model, ids, 1), [6]
    with torch.no_grad():
        while len(text) < 30:
            sofar = torch.cat([ids, torch.tensor([text])], 1)
            for threshold, part in zip([*thresholds, -1.0], models, strict=True):
                logits = part(sofar).logits[0, -1]
                if exit_confidence(logits, confidence) > threshold:
                    break
            text.append(int(logits.argmax()))
            depths.append(len(part.model.layers))
    assert made.tokens == text
    assert made.depths == depths
    assert len(set(depths[1:])) == 3


def test_stops_after_the_end_of_text() -> None:
    options: dict[str, Any] = {"exits": [2, 4], "thresholds": middling(decoder(), [2, 4])}
    tokens = dynamic_exit(decoder(), prompt(), 20, **options, eos=()).tokens
    end = tokens[9]
    made = dynamic_exit(decoder(), prompt(), 20, **options, eos=end)
    assert made.tokens == tokens[: tokens.index(end) + 1]


def test_flushing_twice_or_with_nothing_waiting_changes_nothing() -> None:
    model = decoder()
    with inference(model):
        session = Session(model, 20)
        prefill(session, prompt()[0].tolist(), 6)
        steps = DynamicDecoder(session, [3], 0.0)
        steps.flush()
        steps.step(5)
        before = copy.copy([cache.length for cache in session.cache])
        steps.flush()
        steps.flush()
        assert before == [10, 10, 10, 9, 9, 9]
        assert [cache.length for cache in session.cache] == [10] * 6


@pytest.mark.parametrize(
    ("exits", "thresholds", "words"),
    [
        ([2, 4], [0.5], r"1 thresholds for the exits \[2, 4\] before the full depth 6"),
        ([2, 4, 6], [0.5, 0.5, 0.5], r"3 thresholds for the exits \[2, 4\]"),
        ([2, 8], [0.5, 0.5], "exits 1 to 6, got 8"),
        ([0, 2], [0.5, 0.5], "exits 1 to 6, got 0"),
        ([4, 2], [0.5, 0.5], r"from 1 to 6, got \[4, 2\]"),
        ([2, 2], [0.5, 0.5], r"from 1 to 6, got \[2, 2\]"),
        ([], [], "from 1 to 6, got"),
    ],
)
def test_exits_and_thresholds_that_do_not_fit_are_refused(exits, thresholds, words) -> None:
    with pytest.raises(ValueError, match=words):
        dynamic_exit(decoder(), prompt(), 5, exits=exits, thresholds=thresholds)


def test_an_unknown_confidence_is_refused() -> None:
    with pytest.raises(ValueError, match="max_prob, margin, entropy, got 'certainty'"):
        dynamic_exit(
            decoder(),
            prompt(),
            5,
            exits=[2],
            thresholds=0.5,
            confidence="certainty",  # type: ignore[arg-type]
        )
