r"""How much texts have in common with their true ones: BLEU, NIST, TER, ROUGE-L, CIDEr-D.

BLEU and TER are sacrebleu's, ROUGE-L is rouge-score's. The scripts of the E2E, WebNLG and DART
challenges split words by rules of their own, so that their figures differ a little.
METEOR is missing: see `lightning_kd.metrics.check_metric`.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

Grams = Counter[tuple[str, ...]]


def bleu(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """Corpus BLEU by sacrebleu, from 0 to 100; texts with fewer true ones than others are allowed.

    >>> bleu(["the cat sat on the mat"], [["the cat sat on the mat"]]).round()
    tensor(100.)
    """
    import sacrebleu

    return torch.tensor(float(sacrebleu.corpus_bleu(list(texts), _streams(truths)).score))


def ter(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    r"""Corpus translation edit rate by sacrebleu: edits and shifts of words for each true word.

    In percent, 0 is the best and more than 100 possible. The edits are those to the nearest true
    text, the length the mean of all.

    >>> ter(["the cat sat on a mat"], [["the cat sat on the mat"]])  # one of six
    tensor(16.6667)
    """
    import sacrebleu

    return torch.tensor(float(sacrebleu.corpus_ter(list(texts), _streams(truths)).score))


def rouge_l(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """ROUGE-L F1 by rouge-score, without stemming, the best over the true texts, from 0 to 1.

    >>> rouge_l(["the cat sat"], [["the cat stood"]])
    tensor([0.6667])
    """
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    scorer = RougeScorer(["rougeL"])
    pairs = zip(texts, truths, strict=True)
    best = [max(scorer.score(x, t)["rougeL"].fmeasure for x in several) for t, several in pairs]
    return torch.tensor(best, dtype=torch.float32)


def nist(texts: Sequence[str], truths: Sequence[Sequence[str]], order: int = 5) -> Tensor:
    r"""Corpus NIST: n-grams in common, weighted by how much they tell; 0 is the worst.

    .. math::
        \sum_{n=1}^N \frac{\sum_{w \in \text{common}_n} \log_2 \frac{c(w_1 \dots w_{n-1})}{c(w)}}
        {\sum_{w \in \text{ours}_n} 1} \cdot 2^{-\ln^2 \min(1, L / \bar L) / \ln^2 1.5}

    ``c`` counts in all true texts, with the number of words for the empty n-gram; ``L`` is the
    length of the texts and ``\bar L`` that of the true ones, the mean where there are several.
    Words are sacrebleu's 13a, in lower case.

    Args:
        texts: ``[n]``.
        truths: True ones of each.
        order: Longest n-gram ``N``.

    Source: Doddington (HLT 2002), with the length factor of NIST's script.

    >>> nist(["a b", "c d"], [["a b"], ["c e"]])  # 3 of 4 words, each one of 4; one pair of 2
    tensor(1.5000)
    """
    counts: Grams = Counter()
    total = 0
    length = 0.0
    tokens = [[_words(truth) for truth in several] for several in truths]
    for several in tokens:
        length += sum(map(len, several)) / len(several)
        for words in several:
            total += len(words)
            counts.update(_grams(words, order))
    ours = [_words(text) for text in texts]
    gained, there = [0.0] * order, [0] * order
    for words, several in zip(ours, tokens, strict=True):
        most: Grams = Counter()
        for truth in several:
            most |= _grams(truth, order)
        for gram, count in _grams(words, order).items():
            there[len(gram) - 1] += count
            if common := min(count, most[gram]):
                context = counts[gram[:-1]] if len(gram) > 1 else total
                gained[len(gram) - 1] += common * math.log2(context / counts[gram])
    written = sum(map(len, ours))
    if not written:
        return torch.tensor(0.0)
    shorter = math.log(min(written / length, 1.0)) if length else 0.0
    factor = 0.5 ** (shorter**2 / math.log(1.5) ** 2)
    score = sum(g / t for g, t in zip(gained, there, strict=True) if t)
    return torch.tensor(score * factor)


def cider(texts: Sequence[str], truths: Sequence[Sequence[str]], sigma: float = 6.0) -> Tensor:
    r"""CIDEr-D of each text: how alike its rare n-grams are to those of its true texts.

    .. math::
        \frac{10}{4 m} \sum_{n=1}^4 \sum_{j=1}^m e^{-(l - l_j)^2 / 2 \sigma^2}
        \frac{\min(g_n, g_n^j) \cdot g_n^j}{\lVert g_n \rVert \lVert g_n^j \rVert}

    ``g`` are counts times ``ln(N / d)``, where ``d`` of the ``N`` examples have the n-gram in a
    true text (1 where none has); lengths are in pairs of words. From 0 to 10. Of a single example
    nothing is rare, and it scores 0: the value of an example depends on the others beside it.
    Words are in lower case and without punctuation, unstemmed.

    Args:
        texts: ``[n]``.
        truths: True ones of each.
        sigma: Of the penalty on another length; infinite: none.

    Source: Vedantam et al. (CVPR 2015), section 6, as in the scorer of MS COCO.

    >>> cider(["a b c d", "e"], [["a b c d"], ["f"]])
    tensor([10.,  0.])
    """
    tokens = [[_grams(_plain(truth), 4) for truth in several] for several in truths]
    seen = Counter(gram for several in tokens for gram in set().union(*several))
    scale = math.log(max(len(truths), 1))

    def weights(grams: Grams) -> list[dict[tuple[str, ...], float]]:
        found: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
        for gram, count in grams.items():
            found[len(gram) - 1][gram] = count * (scale - math.log(max(seen[gram], 1)))
        return found

    scores = []
    for text, several in zip(texts, tokens, strict=True):
        grams = _grams(_plain(text), 4)
        ours, total = weights(grams), 0.0
        for truth in several:
            apart = _pairs(grams) - _pairs(truth)
            alike = sum(map(_clipped_cosine, ours, weights(truth)))
            total += alike * math.exp(-(apart**2) / (2 * sigma**2))
        scores.append(10 * total / (4 * len(several)))
    return torch.tensor(scores)


def _clipped_cosine(
    ours: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float]
) -> float:
    norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
    common = sum(min(w, theirs[gram]) * theirs[gram] for gram, w in ours.items() if gram in theirs)
    return common / norms if norms else 0.0


def _pairs(grams: Grams) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 2)


def _grams(words: Sequence[str], order: int) -> Grams:
    return Counter(
        tuple(words[k : k + n]) for n in range(1, order + 1) for k in range(len(words) - n + 1)
    )


@cache
def _tokenizer() -> Any:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    make: Any = Tokenizer13a  # it has no annotations
    return make()


def _words(text: str) -> list[str]:
    return str(_tokenizer()(text.lower())).split()


def _plain(text: str) -> list[str]:
    return re.findall(r"\w+(?:['\u2019.,-]\w+)*", text.lower())


def _streams(truths: Sequence[Sequence[str]]) -> Any:
    """True texts as sacrebleu wants them: the first of every text, the second, and so on.

    It takes None where a text has fewer, which its annotations do not say.
    """
    width = max((len(several) for several in truths), default=0)
    return [[x[k] if k < len(x) else None for x in truths] for k in range(width)]


__all__ = ["bleu", "cider", "nist", "rouge_l", "ter"]
