"""What decoding takes and gives: prompts, ends of text, the answer and what it cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_kd.functional.early_exit import CONFIDENCES

Prompt = Tensor | Sequence[int]
EndOfText = int | Iterable[int] | None


@dataclass
class Generation:
    """New tokens and how they came about.

    Attributes:
        tokens: Without the prompt; an end-of-text token is the last.
        depths: Blocks behind each token. A token that a draft proposed and the full model confirmed
            has the full depth.
        num_heads: Rows that went through norm and head.
        seconds: From the first token on; the prompt is not counted.
        rounds: Of drafting and verifying; 0 without drafts.
        drafted: Tokens that were proposed.
        accepted: Of these, tokens that the full model confirmed.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    num_heads: int = 0
    seconds: float = 0.0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def average_depth(self) -> float:
        """Mean blocks per token.

        >>> Generation(tokens=[5, 6], depths=[4, 6]).average_depth
        5.0
        """
        return sum(self.depths) / max(len(self.depths), 1)

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were confirmed.

        >>> Generation(drafted=4, accepted=3).acceptance
        0.75
        """
        return self.accepted / max(self.drafted, 1)

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first by the seconds that they took.

        >>> Generation(tokens=[5, 6, 7], seconds=0.5).tokens_per_second
        4.0
        """
        return (len(self.tokens) - 1) / self.seconds if self.seconds else 0.0


def read_prompt(prompt: Prompt) -> list[int]:
    """The tokens of one prompt: a list, ``[l]`` or ``[1, l]``.

    Raises:
        ValueError: It is empty, or there are several.

    >>> import torch
    >>> read_prompt(torch.tensor([[3, 4]]))
    [3, 4]
    """
    values = prompt if isinstance(prompt, Tensor) else list(prompt)
    if isinstance(values, Tensor):
        if values.ndim == 2 and len(values) != 1:
            raise ValueError(f"one prompt at a time, got {len(values)}; call once for each")
        values = values.flatten().tolist()
    if not values:
        raise ValueError("the prompt has no tokens; begin with the model's bos_token_id at least")
    return values


def read_length(max_new_tokens: int) -> int:
    """A number of tokens to make, at least 1.

    Raises:
        ValueError: It is smaller.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    return max_new_tokens


def end_tokens(model: nn.Module, eos: EndOfText) -> frozenset[int]:
    """Tokens after which a text ends: those given, or for None those of the model.

    >>> sorted(end_tokens(nn.Identity(), [7, 2])), sorted(end_tokens(nn.Identity(), 3))
    ([2, 7], [3])
    """
    if eos is None:
        own: Any = getattr(model, "generation_config", None) or getattr(model, "config", None)
        eos = getattr(own, "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)


def check_confidence(confidence: str) -> None:
    """Raise `ValueError` for a name that `exit_confidence` does not know."""
    if confidence not in CONFIDENCES:
        raise ValueError(f"confidence must be one of {', '.join(CONFIDENCES)}, got {confidence!r}")


__all__ = [
    "EndOfText",
    "Generation",
    "Prompt",
    "check_confidence",
    "end_tokens",
    "read_length",
    "read_prompt",
]
