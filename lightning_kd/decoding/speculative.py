"""Self-speculative decoding: the first blocks draft, the rest verifies several tokens at once.

Drafting with a sub-model is evaluated by Kavehzadeh et al., "Sorted LLaMA" (Findings of EACL 2024),
on transformers' assisted generation, where draft and model keep a cache each and the verification
computes the drafted blocks again. Here both have one cache, and verification goes on from the
draft's own states.
"""

from time import perf_counter

import torch
from torch import nn

from lightning_kd.decoding.generation import (
    EndOfText,
    Generation,
    Prompt,
    end_tokens,
    read_length,
    read_prompt,
)
from lightning_kd.decoding.greedy import best, prefill
from lightning_kd.decoding.session import Session, inference
from lightning_kd.decoding.window import Window, make_window
from lightning_kd.nn.sorted_exits import check_exits


def self_speculative(
    model: nn.Module,
    prompt: Prompt,
    max_new_tokens: int = 50,
    *,
    draft: int,
    window: Window = "auto",
    eos: EndOfText = None,
) -> Generation:
    """The full model's greedy tokens, several per pass where an exit foresees them.

    A round drafts K tokens one by one with ``draft`` blocks, runs the other blocks on all of them
    and the token before in one pass, keeps the longest prefix that the full model would have
    written, and adds the full model's next token. The tokens are those of `greedy`; a pass over
    several tokens may differ from one over each in the last bit, which only decides between logits
    that are equal to that bit. One text at a time.

    Args:
        model: See `Session`.
        prompt: See `greedy`.
        max_new_tokens: See `greedy`.
        draft: The exit that drafts, smaller than the depth; `tune_speculation` finds it.
        window: K: a number, ``"heuristic"`` (see `HeuristicWindow`) or ``"auto"`` (`AutoWindow`
            with the share of weights that a draft reads as its cost).
        eos: See `greedy`.

    Raises:
        ValueError: ``draft`` is no exit below the full depth, or an unknown window.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> tiny = GPT2Config(vocab_size=5, n_embd=4, n_layer=3, n_head=1, n_positions=16)
    >>> model = GPT2LMHeadModel(tiny)
    >>> answer = self_speculative(model, [3, 1], 8, draft=1, window=2, eos=())
    >>> from lightning_kd.decoding.greedy import greedy
    >>> answer.tokens == greedy(model, [3, 1], 8, eos=()).tokens
    True
    """
    tokens, length = read_prompt(prompt), read_length(max_new_tokens)
    with inference(model):
        session = Session(model, len(tokens) + length)
        check_draft(draft, session.depth)
        ends = end_tokens(model, eos)
        rule = make_window(window, draft_share(session, draft))
        made = Generation([prefill(session, tokens, session.depth)], num_heads=1)
        begin = perf_counter()
        while (left := length - len(made.tokens)) and made.tokens[-1] not in ends:
            size = min(rule.size, left - 1)  # a round adds a token of the full model
            drafted, verified = _round(session, draft, made.tokens[-1], size)
            accepted = next((i for i in range(size) if drafted[i] != verified[i]), size)
            session.crop(len(tokens) + len(made.tokens) + accepted)
            made.tokens += verified[: accepted + 1]
            made.num_heads += 2 * size + 1
            made.rounds += 1
            made.drafted += size
            made.accepted += accepted
            rule.update(accepted, size)
            _cut(made.tokens, ends, accepted + 1)
        made.seconds = perf_counter() - begin
        made.depths = [session.depth] * len(made.tokens)
        return made


def check_draft(draft: int, depth: int) -> None:
    """Raise `ValueError` unless ``draft`` is an exit before the last."""
    check_exits([draft], depth)
    if draft == depth:
        way_out = f"give an exit of 1 to {depth - 1}" if depth > 1 else "decode it plainly"
        raise ValueError(f"draft {draft} is the whole model; {way_out}")


def draft_share(session: Session, draft: int) -> float:
    """Weights that a token of the draft reads, as a share of those that one of the model reads."""
    sizes = [sum(p.numel() for p in block.parameters()) for block in session.stack.layers]
    head = session.stack.embedding.weight.numel()  # as large as the head
    return (sum(sizes[:draft]) + head) / (sum(sizes) + head)


def _round(session: Session, draft: int, token: int, size: int) -> tuple[list[int], list[int]]:
    """``size`` tokens as the draft continues, and ``size + 1`` as the full model answers them."""
    start = session.cache[0].length
    drafted: list[int] = []
    states = []
    for position in range(start, start + size + 1):
        hidden = session.embed(session.tokens([token]), position)
        states.append(session.run(hidden, 0, draft))
        if len(drafted) < size:  # the last one's state is needed where all are right
            token = best(session.logits(states[-1]))
            drafted.append(token)
    hidden = session.run(torch.cat(states, 1), draft, session.depth)
    verified: list[int] = session.logits(hidden).argmax(-1).tolist()
    return drafted, verified


def _cut(tokens: list[int], ends: frozenset[int], new: int) -> None:
    """Drop what came after an end of text among the last ``new`` tokens."""
    for place in range(len(tokens) - new, len(tokens)):
        if tokens[place] in ends:
            del tokens[place + 1 :]
            return


__all__ = ["check_draft", "draft_share", "self_speculative"]
