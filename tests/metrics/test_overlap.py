"""Overlap scores: by hand, against loops, and against other people's code."""

import math

import numpy as np
import pytest
import torch

from lightning_kd.metrics.overlap import bleu, cider, nist, rouge_l, ter

TEXTS = ["the cat sat on the mat today", "a dog runs in a big park", "it rains", ""]
TRUTHS = [
    ["the cat sat on a mat", "on the mat the cat sat today"],
    ["a dog is running in the park", "one dog runs in a big green park", "a dog runs"],
    ["it rains a lot"],
    ["nothing was written"],
]


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]


def test_bleu_by_a_loop_with_the_closest_of_several_references() -> None:
    found = bleu(TEXTS, TRUTHS)
    ours, closest, logs = 0, 0, 0.0
    for text, several in zip(TEXTS, TRUTHS, strict=True):
        size = len(text.split())
        ours += size
        closest += min((abs(len(x.split()) - size), len(x.split())) for x in several)[1]
    for n in range(1, 5):
        right, total = 0, 0
        for text, several in zip(TEXTS, TRUTHS, strict=True):
            own = grams(text.split(), n)
            total += len(own)
            for gram in set(own):
                most = max(grams(x.split(), n).count(gram) for x in several)
                right += min(own.count(gram), most)
        logs += math.log(right / total) / 4
    expected = 100 * math.exp(min(0.0, 1 - closest / ours) + logs)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_ter_counts_edits_to_the_nearest_for_the_mean_length() -> None:
    # one word of "a b c d" changed; the lengths of its true texts are 4 and 2
    assert ter(["a b x d"], [["a b c d", "q r"]]).item() == pytest.approx(100 / 3)
    assert ter(["c d a b"], [["a b c d"]]).item() == pytest.approx(25)  # one shift
    assert ter(["a b c d"], [["a b c d"]]) == 0


def test_rouge_l_by_the_longest_common_subsequence() -> None:
    def common(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return common(a[:-1], b[:-1]) + 1
        return max(common(a[:-1], b), common(a, b[:-1]))

    expected = []
    for text, several in zip(TEXTS, TRUTHS, strict=True):
        pairs = [(text.split(), truth.split()) for truth in several]
        expected.append(max(2 * common(a, b) / (len(a) + len(b)) for a, b in pairs))
    torch.testing.assert_close(rouge_l(TEXTS, TRUTHS), torch.tensor(expected))


def test_a_model_that_writes_nothing_has_a_rouge_l_like_any_other() -> None:
    assert rouge_l(["", ""], [["a b"], ["c"]]).mean() == 0  # rouge-score's zeros are integers


def test_nist_is_nltk_s_where_there_is_one_reference() -> None:
    from nltk.translate.nist_score import corpus_nist  # type: ignore[import-untyped]

    texts = ["the cat sat on the mat today", "a dog runs in a big park", "it rains again and again"]
    truths = [several[0] for several in TRUTHS[:3]]
    theirs = corpus_nist([[t.split()] for t in truths], [t.split() for t in texts], n=5)
    found = nist(texts, [[t] for t in truths])
    assert found.item() == pytest.approx(theirs, rel=1e-5)


def test_nist_by_hand_with_two_references() -> None:
    """Five true words; "a" is three of them, "b" and "c" one each; "a b" follows one "a" of 3."""
    found = nist(["a b"], [["a b a", "c a"]])
    words = (math.log2(5 / 3) + math.log2(5 / 1)) / 2
    pairs = math.log2(3 / 1) / 1
    short = math.log(2 / 2.5) ** 2 / math.log(1.5) ** 2
    assert found.item() == pytest.approx((words + pairs) * 0.5**short, rel=1e-6)
    assert nist(["a a"], [["a b"]]).item() == pytest.approx(1 / 2)  # the second "a" is one too many
    assert nist([""], [["a b"]]) == 0


def test_nist_ignores_case_and_parts_punctuation() -> None:
    assert nist(["A dog, runs."], [["a dog , runs ."]]) == nist(
        ["a dog , runs ."], [["a dog, runs."]]
    )


def test_cider_by_hand() -> None:
    """Two examples: what both have weighs nothing, what one has ln 2.

    "a b": words a, b and the pair "a b"; "b" is in both examples' true texts.
    """
    found = cider(["a b", "b d"], [["a b", "a c"], ["b"]])
    # first: n=1: a weighs ln 2, b 0: cosine 1 with "a b"; with "a c": c weighs ln 2: 1 / sqrt 2
    #        n=2: the pair "a b": 1 with the first, 0 with the second; n=3, 4: none
    first = 10 / (4 * 2) * ((1 + 1) + (1 / math.sqrt(2) + 0))
    # second: b weighs nothing, d (in no true text: as if in one) is not in "b"
    torch.testing.assert_close(found, torch.tensor([first, 0.0]))


def test_cider_clips_and_punishes_another_length() -> None:
    # n=1: ours is 3 ln 2, theirs ln 2: min(3, 1) * 1 / (3 * 1); 2 pairs of words more
    found = cider(["a a a", "x"], [["a"], ["y"]])
    expected = 10 / 4 * (1 / 3) * math.exp(-(2**2) / (2 * 36))
    torch.testing.assert_close(found, torch.tensor([expected, 0.0]))
    torch.testing.assert_close(
        cider(["a a a", "x"], [["a"], ["y"]], sigma=math.inf)[0], torch.tensor(10 / 12)
    )


def test_cider_by_vectors_over_all_n_grams() -> None:
    found = cider(TEXTS, TRUTHS)
    scores = np.zeros(len(TEXTS))
    for n in range(1, 5):
        every = sorted({g for xs in TRUTHS for x in xs for g in grams(x.split(), n)}
                       | {g for x in TEXTS for g in grams(x.split(), n)})  # fmt: skip
        spread = [sum(any(g in grams(x.split(), n) for x in xs) for xs in TRUTHS) for g in every]
        weight = np.log(len(TRUTHS)) - np.log(np.maximum(spread, 1))

        def vector(text: str) -> np.ndarray:
            return weight * [grams(text.split(), n).count(g) for g in every]  # noqa: B023

        for k, (text, several) in enumerate(zip(TEXTS, TRUTHS, strict=True)):
            for truth in several:
                a, b = vector(text), vector(truth)
                norm = np.linalg.norm(a) * np.linalg.norm(b)
                apart = max(len(text.split()) - 1, 0) - max(len(truth.split()) - 1, 0)
                alike = np.minimum(a, b) @ b / norm if norm else 0.0
                scores[k] += 10 / 4 * alike * np.exp(-(apart**2) / 72) / len(several)
    np.testing.assert_allclose(found.numpy(), scores, rtol=1e-5, atol=1e-7)
    assert (scores[:2] > 1).all()


def test_order_of_references_and_texts_does_not_matter() -> None:
    for score in (bleu, nist, ter):
        turned = score(TEXTS[::-1], [x[::-1] for x in TRUTHS[::-1]])
        torch.testing.assert_close(score(TEXTS, TRUTHS), turned)
    for score in (cider, rouge_l):
        turned = score(TEXTS[::-1], [x[::-1] for x in TRUTHS[::-1]])
        torch.testing.assert_close(score(TEXTS, TRUTHS), turned.flip(0))
