"""What the exits of a model would have said along the full model's own text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_kd.decoding.generation import (
    EndOfText,
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


@dataclass(frozen=True)
class Probe:
    """One text's answers: rows are exits, columns the tokens after the first.

    Attributes:
        exits: Below the full depth.
        depth: Of the full model.
        confidence: ``[exits, n]``, in [0, 1].
        agrees: ``[exits, n]``, whether the exit's token is the full model's.
    """

    exits: tuple[int, ...]
    depth: int
    confidence: Tensor
    agrees: Tensor


def probe_exits(
    model: nn.Module,
    prompts: Sequence[Prompt],
    exits: Sequence[int],
    max_new_tokens: int = 50,
    *,
    confidence: Confidence = "max_prob",
    eos: EndOfText = None,
) -> list[Probe]:
    """Decode greedily at full depth and ask every exit at every token.

    Args:
        model: See `Session`.
        prompts: Of the kind that will be decoded; texts of one token after the prompt are left out.
        exits: Below the full depth; the full depth itself is ignored.
        max_new_tokens: See `greedy`, at least 2.
        confidence: See `exit_confidence`.
        eos: See `greedy`.

    Raises:
        ValueError: An unknown confidence, no exit below the full depth, or no prompt whose text
            goes on.
    """
    check_confidence(confidence)
    with inference(model):
        probes = [
            found
            for prompt in prompts
            if (found := _probe(model, prompt, exits, max_new_tokens, confidence, eos)) is not None
        ]
    if not probes:
        raise ValueError(
            f"none of {len(prompts)} prompts is followed by more than one token; give others, or "
            f"more max_new_tokens than {max_new_tokens}"
        )
    return probes


def _probe(
    model: nn.Module,
    prompt: Prompt,
    exits: Sequence[int],
    max_new_tokens: int,
    confidence: Confidence,
    eos: EndOfText,
) -> Probe | None:
    tokens, length = read_prompt(prompt), read_length(max_new_tokens)
    session = Session(model, len(tokens) + length)
    stops = [exit_ for exit_ in check_exits(exits, session.depth) if exit_ < session.depth]
    if not stops:
        raise ValueError(f"give exits below the full depth {session.depth}, got {list(exits)}")
    ends = end_tokens(model, eos)
    token = prefill(session, tokens, session.depth)
    sure, right = [], []
    for position in range(len(tokens), len(tokens) + length - 1):
        if token in ends:
            break
        hidden = session.embed(session.tokens([token]), position)
        answers, reached = [], 0
        for exit_ in [*stops, session.depth]:
            hidden = session.run(hidden, reached, exit_)
            answers.append(session.logits(hidden))
            reached = exit_
        token = best(answers[-1])
        early = torch.cat(answers[:-1])
        sure.append(exit_confidence(early, confidence))
        right.append(early.argmax(-1) == token)
    if not sure:
        return None
    return Probe(tuple(stops), session.depth, torch.stack(sure, 1), torch.stack(right, 1))


__all__ = ["Probe", "probe_exits"]
