"""Scores of a split: sums over tokens with their standard errors, and scores of written texts."""

import math
from typing import Any

import pytest
import torch
from datasets import Dataset

from lightning_kd.data.text_answers import TextKey
from lightning_kd.tasks import CausalLM, Prediction
from tests import tiny, tiny_texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        tiny_texts.byte_tokenizer(tmp_path_factory.mktemp("answers") / "bytes")
    )


def key(tokenizer, *metrics, truths=(), parts=None, new=8) -> TextKey:
    task = CausalLM("x", ("perplexity", "token_accuracy", *metrics), max_new_tokens=new)
    rows: dict[str, Any] = {"idx": [10 + 2 * i for i in range(len(truths))]}
    rows["label"] = [{"references": list(several)} for several in truths]
    if parts:
        rows["part"] = parts
    return TextKey(task, Dataset.from_dict(rows), tokenizer)


def records(tokenizer, sums, texts, new=8) -> torch.Tensor:
    """As `TextKey.record` makes them; None: no text was asked for."""
    rows = torch.full((len(sums), 4 + new), -1.0)
    rows[:, :3] = torch.as_tensor(sums)
    for row, text in zip(rows, texts, strict=True):
        row[3] = float(text is not None)
        if text:
            tokens = tokenizer(text).input_ids
            row[4 : 4 + len(tokens)] = torch.tensor(tokens, dtype=torch.float)
    return rows


def test_records_of_a_batch(tokenizer) -> None:
    made = key(tokenizer, truths=[["a"]] * 4, new=3)
    batch = tiny.batch(4, tiny.TASKS["text"]) | {
        "generate": torch.tensor([False, True, False, True])
    }
    places = int((batch["labels"][:, 1:] != -100).sum(1).max())
    prediction = Prediction(torch.randn(4, places, tiny.VOCABULARY))
    sums = made.task.answers(prediction, batch)
    written = torch.tensor([[7, 8, -1], [9, -1, -1]])
    found = made.record(Prediction(prediction.logits, generated=written), batch)
    assert torch.equal(found[:, :3], sums)
    assert found[:, 3:].tolist() == [
        [0, -1, -1, -1], [1, 7, 8, -1], [0, -1, -1, -1], [1, 9, -1, -1],
    ]  # fmt: skip
    assert made.record(prediction, batch)[:, 3].tolist() == [0] * 4


def test_token_scores_are_ratios_of_sums(tokenizer) -> None:
    sums = [[2.0, 1, 2], [9.0, 0, 3], [0.5, 5, 5]]
    made = key(tokenizer, truths=[["a"]] * 3)
    scores = made.score(torch.tensor([10, 12, 14]), records(tokenizer, sums, [None] * 3))
    assert scores["perplexity"].mean().item() == pytest.approx(math.exp(11.5 / 10))
    assert scores["token_accuracy"].mean().item() == pytest.approx(6 / 10)
    assert scores["perplexity"].shape == (3,)


def test_their_standard_errors_are_a_bootstrap_s(tokenizer) -> None:
    """Of a ratio of sums over examples of unequal lengths, which a mean of ratios would miss."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 40, (400,), generator=generator).double()
    losses = counts * (1 + 0.3 * torch.randn(400, generator=generator)).abs()
    right = (counts * torch.rand(400, generator=generator)).floor()
    sums = torch.stack([losses, right, counts], 1)
    made = key(tokenizer, truths=[["a"]] * 400)
    idx = torch.arange(10, 810, 2)
    scores = made.score(idx, records(tokenizer, sums, [None] * 400))
    draws = torch.randint(400, (4000, 400), generator=generator)
    total = sums[draws].sum(1)
    for name, drawn in (
        ("perplexity", (total[:, 0] / total[:, 2]).exp()),
        ("token_accuracy", total[:, 1] / total[:, 2]),
    ):
        error = scores[name].std() / math.sqrt(400)
        assert error.item() == pytest.approx(drawn.std().item(), rel=0.05), name


def test_texts_are_scored_by_their_own_truths_whatever_the_order(tokenizer) -> None:
    truths = [["Ann", "Anna"], ["a  dog"], ["x"], ["日本"]]
    made = key(tokenizer, "exact_match", "case_sensitive_match", "f1", truths=truths, new=12)
    idx = torch.tensor([16, 10, 14, 12])
    rows = records(tokenizer, [[1.0, 1, 1]] * 4, ["日本", "anna", None, " dog cat "], new=12)
    assert made.texts(idx, rows) == {10: "anna", 12: "dog cat", 16: "日本"}
    scores = made.score(idx, rows)
    assert list(scores) == list(made.task.metric_names)
    assert scores["exact_match"].tolist() == [1, 0, 1]
    assert scores["case_sensitive_match"].tolist() == [0, 0, 1]
    torch.testing.assert_close(scores["f1"].float(), torch.tensor([1, 2 / 3, 1]))


def test_a_text_may_be_empty_or_half_a_letter(tokenizer) -> None:
    made = key(tokenizer, "f1", "bleu", truths=[["a"], ["b"]])
    rows = records(tokenizer, [[1.0, 1, 1]] * 2, ["", "b"])
    rows[1, 4] = tokenizer("é").input_ids[0]
    found = made.texts(torch.tensor([10, 12]), rows)
    assert found == {10: "", 12: "\ufffd"}
    scores = made.score(torch.tensor([10, 12]), rows)
    assert scores["f1"].tolist() == [0, 0]
    assert scores["bleu"] == 0


def test_without_texts_there_are_no_scores_of_them(tokenizer) -> None:
    made = key(tokenizer, "bleu", "f1", truths=[["a"]])
    scores = made.score(torch.tensor([10]), records(tokenizer, [[1.0, 1, 1]], [None]))
    assert list(scores) == ["perplexity", "token_accuracy"]


def test_a_part_of_the_benchmark_is_scored_for_itself(tokenizer) -> None:
    truths = [["a b c d"], ["e f g h"], ["i j k l"]]
    texts = ["a b c d", "e f g h i", "x"]
    made = key(tokenizer, "bleu", "bleu_seen", "bleu_unseen", "f1_else", truths=truths,
               parts=["seen", "unseen", "unseen"], new=12)  # fmt: skip
    idx = torch.tensor([10, 12, 14])
    scores = made.score(idx, records(tokenizer, [[1.0, 1, 1]] * 3, texts, new=12))
    from lightning_kd.metrics.overlap import bleu

    for name, kept in (("bleu", [0, 1, 2]), ("bleu_seen", [0]), ("bleu_unseen", [1, 2])):
        expected = bleu([texts[k] for k in kept], [truths[k] for k in kept])
        assert scores[name].item() == pytest.approx(expected.item()), name
    assert scores["bleu_seen"].item() == pytest.approx(100)
    assert list(scores) == [name for name in made.task.metric_names if name != "f1_else"]


def test_a_metric_that_nobody_scores(tokenizer) -> None:
    with pytest.raises(ValueError, match="x has no metric 'meteor'; choose from perplexity, "):
        key(tokenizer, "meteor", truths=[["a"]])
