"""How well texts answer: against one or several true ones, one value each or one for all."""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

Scorer = Callable[[Sequence[str], Sequence[Sequence[str]]], Tensor]
"""From texts and the true ones of each to a value for each, or to one (0-dim) of all together."""


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces: SQuAD's and TriviaQA's rule.

    >>> normalized("The  Brunei, a sultanate!")
    'brunei sultanate'
    """
    text = "".join(" " if c in string.punctuation else c for c in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """1 where a text is one of its true ones, outer space aside.

    >>> exact_match(["brunei", " Brunei"], [["Brunei"], ["Brunei"]])
    tensor([0., 1.])
    """
    pairs = zip(texts, truths, strict=True)
    return torch.tensor([float(t.strip() in [x.strip() for x in xs]) for t, xs in pairs])


def normalized_match(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """`exact_match` of `normalized` texts."""
    plain = [[normalized(truth) for truth in several] for several in truths]
    return exact_match([normalized(text) for text in texts], plain)


def word_f1(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """F1 of the `normalized` words, the best over the true texts.

    >>> word_f1(["the red fox"], [["a fox", "a dog"]])
    tensor([0.6667])
    """

    def f1(text: str, truth: str) -> float:
        ours, theirs = normalized(text).split(), normalized(truth).split()
        common = sum((Counter(ours) & Counter(theirs)).values())
        return 2 * common / (len(ours) + len(theirs)) if common else float(ours == theirs)

    pairs = zip(texts, truths, strict=True)
    return torch.tensor([max(f1(text, truth) for truth in several) for text, several in pairs])


def bleu(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """Corpus BLEU by sacrebleu, from 0 to 100; texts with fewer true ones than others are allowed.

    >>> bleu(["the cat sat on the mat"], [["the cat sat on the mat"]]).round()
    tensor(100.)
    """
    import sacrebleu

    streams: Any = _streams(truths)  # it declares no missing texts, and takes them
    return torch.tensor(float(sacrebleu.corpus_bleu(list(texts), streams).score))


def rouge_l(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """ROUGE-L F1 by rouge-score, without stemming, the best over the true texts, from 0 to 1.

    >>> rouge_l(["the cat sat"], [["the cat stood"]])
    tensor([0.6667])
    """
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    scorer = RougeScorer(["rougeL"])
    pairs = zip(texts, truths, strict=True)
    best = [max(scorer.score(x, t)["rougeL"].fmeasure for x in several) for t, several in pairs]
    return torch.tensor(best)


def _streams(truths: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """True texts as sacrebleu wants them: the first of every text, the second, and so on."""
    width = max((len(several) for several in truths), default=0)
    return [[x[k] if k < len(x) else None for x in truths] for k in range(width)]


SCORERS: Final[Mapping[str, Scorer]] = {
    "bleu": bleu,
    "exact_match": exact_match,
    "normalized_match": normalized_match,
    "rouge_l": rouge_l,
    "word_f1": word_f1,
}
"""By the name of the metric."""

__all__ = [
    "SCORERS",
    "Scorer",
    "bleu",
    "exact_match",
    "normalized",
    "normalized_match",
    "rouge_l",
    "word_f1",
]
