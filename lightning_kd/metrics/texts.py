"""Whether a text is right: against one or several true ones, one value each."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Scorer = Callable[[Sequence[str], Sequence[Sequence[str]]], Tensor]
"""From texts and the true ones of each to a value for each, or to one (0-dim) of all together."""

_PUNCTUATION = frozenset(string.punctuation + "\u2018\u2019\u00b4")


def normalized(text: str) -> str:
    """TriviaQA's rule: lower case, spaces for punctuation and articles, single spaces.

    (SQuAD's joins what an apostrophe parts; its scores are `lightning_kd.data.span_answers`'.)

    >>> normalized("The  Brunei, a `sultan's` state_!")
    'brunei sultan s state'
    """
    text = "".join(" " if c in _PUNCTUATION else c for c in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """1 where a text is one of its true ones, letter for letter but for outer space.

    >>> exact_match(["brunei", " Brunei"], [["Brunei"], ["Brunei"]])
    tensor([0., 1.])
    """
    pairs = zip(texts, truths, strict=True)
    return torch.tensor([float(t.strip() in [x.strip() for x in xs]) for t, xs in pairs])


def normalized_match(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """`exact_match` of `normalized` texts, as TriviaQA is scored.

    >>> normalized_match(["the brunei."], [["Borneo", "Brunei"]])
    tensor([1.])
    """
    plain = [[normalized(truth) for truth in several] for several in truths]
    return exact_match([normalized(text) for text in texts], plain)


def word_f1(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """F1 of the `normalized` words, the best over the true texts; 0 where none is in common.

    >>> word_f1(["the red fox"], [["a fox", "a dog"]])
    tensor([0.6667])
    """

    def f1(text: str, truth: str) -> float:
        ours, theirs = normalized(text).split(), normalized(truth).split()
        common = sum((Counter(ours) & Counter(theirs)).values())
        return 2 * common / (len(ours) + len(theirs)) if common else 0.0

    pairs = zip(texts, truths, strict=True)
    return torch.tensor([max(f1(text, truth) for truth in several) for text, several in pairs])


__all__ = ["Scorer", "exact_match", "normalized", "normalized_match", "word_f1"]
