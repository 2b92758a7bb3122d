"""Decoding that stops at the first exit which is sure enough, token by token, with an exact cache.

Kavehzadeh et al., "Sorted LLaMA: Unlocking the Potential of Intermediate Layers of Large Language
Models for Dynamic Inference" (Findings of EACL 2024). A token that stopped early leaves deeper
blocks without its keys and values. Its state is kept at its exit, and the next token that goes
deeper takes it along, so that every block sees the states it would have computed anyway.
"""

import math
from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor, nn

from lightning_kd.decoding.generation import (
    EndOfText,
    Generation,
    Prompt,
    check_confidence,
    end_tokens,
    read_length,
    read_prompt,
)
from lightning_kd.decoding.greedy import best, prefill
from lightning_kd.decoding.session import Session, inference
from lightning_kd.functional.early_exit import Confidence, exit_confidence
from lightning_kd.nn.sorted_exits import check_exits


def dynamic_exit(
    model: nn.Module,
    prompt: Prompt,
    max_new_tokens: int = 50,
    *,
    exits: Sequence[int],
    thresholds: float | Sequence[float],
    confidence: Confidence = "max_prob",
    eos: EndOfText = None,
) -> Generation:
    r"""Each token from the first exit n with :math:`c_n > \tau_n`; the whole model is always sure.

    The prompt is read at full depth, so the first token is the full model's. One text at a time.

    Args:
        model: See `Session`.
        prompt: See `greedy`.
        max_new_tokens: See `greedy`.
        exits: Blocks after which to ask, increasing; the full depth is added where it is missing.
        thresholds: One per exit before the full depth, or one for all of them. Above 1 never stops
            early; below 0 always stops at the first.
        confidence: See `exit_confidence`.
        eos: See `greedy`.

    Raises:
        ValueError: Exits outside the model, thresholds of another number or NaN, an unknown
            confidence.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> tiny = GPT2Config(vocab_size=5, n_embd=4, n_layer=3, n_head=1, n_positions=8)
    >>> model = GPT2LMHeadModel(tiny)
    >>> answer = dynamic_exit(model, [3, 1], 4, exits=[1, 2], thresholds=[1.1, -1.0], eos=())
    >>> answer.depths, answer.num_heads
    ([3, 2, 2, 2], 7)
    """
    tokens, length = read_prompt(prompt), read_length(max_new_tokens)
    with inference(model):
        session = Session(model, len(tokens) + length)
        decoder = DynamicDecoder(session, exits, thresholds, confidence)
        ends = end_tokens(model, eos)
        token = prefill(session, tokens, session.depth)
        made = Generation([token], [session.depth])
        begin = perf_counter()
        while len(made.tokens) < length and token not in ends:
            logits, depth = decoder.step(token)
            token = best(logits)
            made.tokens.append(token)
            made.depths.append(depth)
        made.seconds = perf_counter() - begin
        made.num_heads = 1 + decoder.num_heads
        return made


class DynamicDecoder:
    """The step of `dynamic_exit`, and the states that wait at exits for a deeper token.

    Args:
        session: With the prompt in it, at full depth.
        exits: See `dynamic_exit`.
        thresholds: See `dynamic_exit`.
        confidence: See `dynamic_exit`.
    """

    def __init__(
        self,
        session: Session,
        exits: Sequence[int],
        thresholds: float | Sequence[float],
        confidence: Confidence = "max_prob",
    ) -> None:
        self.session = session
        self.exits = check_exits(exits, session.depth)
        if self.exits[-1] != session.depth:
            self.exits.append(session.depth)
        self.thresholds = read_thresholds(thresholds, self.exits)
        check_confidence(confidence)
        self.confidence = confidence
        self.num_heads = 0
        self._waiting: dict[int, Tensor] = {}

    def step(self, token: int) -> tuple[Tensor, int]:
        """Logits ``[1, V]`` after one more token, and the exit they come from."""
        session = self.session
        # The first block has seen all tokens so far, whatever their exits.
        hidden = session.embed(session.tokens([token]), session.cache[0].length)
        reached = 0
        for exit_, threshold in zip(self.exits, self.thresholds, strict=True):
            hidden = session.run(self._with_waiting(hidden, reached), reached, exit_)
            logits = session.logits(hidden[:, -1:])
            self.num_heads += 1
            if exit_ == session.depth:
                break
            if float(exit_confidence(logits, self.confidence)) > threshold:
                self._waiting[exit_] = self._with_waiting(hidden, exit_)
                break
            reached = exit_
        return logits, exit_

    def flush(self) -> None:
        """Take all that waits through the rest of the blocks; the cache is then a full pass's."""
        reached, hidden = 0, None
        for exit_ in self.exits:
            if hidden is not None:
                hidden = self.session.run(hidden, reached, exit_)
            reached = exit_
            if exit_ in self._waiting:
                waiting = self._waiting.pop(exit_)
                hidden = waiting if hidden is None else torch.cat([waiting, hidden], 1)

    def _with_waiting(self, hidden: Tensor, exit_: int) -> Tensor:
        """The states after an exit, with those before them that stopped there."""
        waiting = self._waiting.pop(exit_, None)
        return hidden if waiting is None else torch.cat([waiting, hidden], 1)


def read_thresholds(thresholds: float | Sequence[float], exits: Sequence[int]) -> list[float]:
    """A threshold per exit; that of the last, which is the whole model, is not asked for.

    Raises:
        ValueError: Their number is not that of the exits before the last, or one is NaN.

    >>> read_thresholds([0.9, 0.8], exits=[2, 4, 6])
    [0.9, 0.8, -1.0]
    >>> read_thresholds(0.5, exits=[2, 4, 6])
    [0.5, 0.5, -1.0]
    """
    asked = list(exits[:-1])
    given = [thresholds] * len(asked) if isinstance(thresholds, int | float) else list(thresholds)
    if len(given) != len(asked):
        raise ValueError(
            f"{len(given)} thresholds for the exits {asked} before the full depth {exits[-1]}; "
            "give one for each, or one for all"
        )
    if any(math.isnan(threshold) for threshold in given):
        raise ValueError(f"thresholds must be numbers, got {given}; above 1 never stops early")
    return [*given, -1.0]


__all__ = ["DynamicDecoder", "dynamic_exit", "read_thresholds"]
