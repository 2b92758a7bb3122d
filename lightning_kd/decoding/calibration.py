"""Thresholds for dynamic exit, from a wanted agreement with the full model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lightning_kd.decoding.generation import EndOfText, Prompt
from lightning_kd.decoding.probe import probe_exits
from lightning_kd.functional.early_exit import Confidence, agreement_threshold


@dataclass(frozen=True)
class Calibration:
    """Thresholds and what they came to on the sample.

    Attributes:
        exits: Below the full depth.
        thresholds: One for each; infinity where an exit never agrees often enough.
        confidence: Of which kind.
        agreement: Share of the tokens that are the full model's.
        average_depth: Mean blocks per token; each is given the full model's text before it.
        shares: Of tokens that stop at each exit, and at the full depth.
        num_tokens: In the sample.
    """

    exits: tuple[int, ...]
    thresholds: tuple[float, ...]
    confidence: Confidence
    agreement: float
    average_depth: float
    shares: tuple[float, ...]
    num_tokens: int


def calibrate_thresholds(
    model: nn.Module,
    prompts: Sequence[Prompt],
    exits: Sequence[int],
    *,
    agreement: float = 0.95,
    confidence: Confidence = "max_prob",
    max_new_tokens: int = 50,
    eos: EndOfText = None,
) -> Calibration:
    """For every exit the lowest threshold at which its tokens agree with the full model's.

    Exits are set from the shallowest on, each on the tokens that those before it passed on, as in
    decoding. Tokens are asked for after the full model's text; in free running an early mistake
    changes what follows, so there the share of equal tokens is lower.

    Args:
        model: See `Session`.
        prompts: A sample of what will be decoded.
        exits: See `dynamic_exit`.
        agreement: Wanted at every exit, in [0, 1]; 1 trusts an exit only above its surest mistake.
        confidence: See `exit_confidence`.
        max_new_tokens: Per prompt.
        eos: See `greedy`.

    Raises:
        ValueError: See `agreement_threshold` and `probe_exits`.
    """
    if not 0 <= agreement <= 1:  # before any decoding
        raise ValueError(f"the target agreement must be in [0, 1], got {agreement}")
    probes = probe_exits(model, prompts, exits, max_new_tokens, confidence=confidence, eos=eos)
    sure = torch.cat([probe.confidence for probe in probes], 1)
    right = torch.cat([probe.agrees for probe in probes], 1)
    left = torch.ones(sure.shape[1], dtype=torch.bool, device=sure.device)
    thresholds, counts, agreed = [], [], 0
    for confidences, agrees in zip(sure, right, strict=True):
        threshold = agreement_threshold(confidences[left], agrees[left], agreement)
        stops = left & (confidences.double() > threshold)
        thresholds.append(threshold)
        counts.append(int(stops.sum()))
        agreed += int((stops & agrees).sum())
        left &= ~stops
    counts.append(int(left.sum()))
    total = sure.shape[1]
    depths = [*probes[0].exits, probes[0].depth]
    return Calibration(
        exits=probes[0].exits,
        thresholds=tuple(thresholds),
        confidence=confidence,
        agreement=(agreed + counts[-1]) / total,
        average_depth=sum(n * depth for n, depth in zip(counts, depths, strict=True)) / total,
        shares=tuple(count / total for count in counts),
        num_tokens=total,
    )


__all__ = ["Calibration", "calibrate_thresholds"]
