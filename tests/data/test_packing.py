"""Several texts in a row: what goes where, and that none knows of its neighbours."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from lightning_kd.data.encoding import encode
from lightning_kd.data.packing import Packed, PackedPadding, first_fit
from lightning_kd.data.texts import TextPadding, tokenize_texts
from lightning_kd.models import load_model
from lightning_kd.tasks import CausalLM
from tests import tiny, tiny_texts

TASK = CausalLM("alpaca")


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(9, 20))
def test_first_fit_is_what_its_name_says(lengths, capacity) -> None:
    bins: list[list[int]] = []
    for item, length in enumerate(lengths):
        for members in bins:
            if sum(lengths[k] for k in members) + length <= capacity:
                members.append(item)
                break
        else:
            bins.append([item])
    assert first_fit(lengths, capacity) == bins


def test_what_fits_nowhere_is_told() -> None:
    with pytest.raises(ValueError, match="length 6 is in no bin of 5"):
        first_fit([1, 6], 5)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A tokenized split of nine examples and its tokenizer."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("packing")
    tokenizer = AutoTokenizer.from_pretrained(tiny_texts.byte_tokenizer(folder / "bytes"))
    pairs = [("ab?"[: 1 + i % 3], "cdefgh"[: i % 5]) for i in range(9)]
    columns = {"sentence1": [p for p, _ in pairs], "sentence2": [t for _, t in pairs]}
    examples = Dataset.from_dict({"idx": list(range(9)), **columns})
    path = folder / "split.arrow"
    return encode(lambda: examples, lambda x: tokenize_texts(x, tokenizer, 12), path), tokenizer


def both(texts, mask_prompt=True):
    """A batch of all rows packed, and one of all texts apart."""
    split, tokenizer = texts
    packed = Packed(split, 12)
    rows = PackedPadding(tokenizer, mask_prompt=mask_prompt)(packed[list(range(len(packed)))])
    alone = TextPadding(tokenizer, mask_prompt=mask_prompt)(split[list(range(len(split)))])
    return packed, rows, alone


def test_rows_hold_every_text_once_whole_and_begin_anew(texts) -> None:
    split, _ = texts
    packed, rows, _ = both(texts)
    assert len(packed) < len(split)
    assert sorted(k for members in packed.bins for k in members) == list(range(9))
    assert max(packed.lengths) <= 12
    assert rows["idx"].tolist() == list(range(len(packed)))
    assert set(rows) == {"input_ids", "position_ids", "labels", "idx"}
    for r, members in enumerate(packed.bins):
        expected = [t for k in members for t in split[k]["input_ids"].tolist()]
        positions = [p for k in members for p in range(split.lengths[k])]
        rest = rows["input_ids"].shape[1] - len(expected)
        assert rows["input_ids"][r].tolist() == [*expected, *[0] * rest]
        assert rows["position_ids"][r].tolist() == [*positions, *range(rest)]


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_targets_are_those_of_the_texts_alone(texts, mask_prompt) -> None:
    """So the first token of a text, which its neighbour's last would foretell, is none."""
    split, _ = texts
    packed, rows, alone = both(texts, mask_prompt)
    for r, members in enumerate(packed.bins):
        targets = []
        for k in members:
            labels = alone["labels"][k, : split.lengths[k]].tolist()
            targets += [-100, *labels[1:]]
        rest = rows["labels"].shape[1] - len(targets)
        assert rows["labels"][r].tolist() == [*targets, *[-100] * rest]
    counts = TASK.truths(alone).numpy()
    assert packed.sums(counts).tolist() == TASK.truths(rows).tolist()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_logits_are_those_of_texts_in_rows_of_their_own(texts, kind, attention) -> None:
    split, _ = texts
    packed, rows, alone = both(texts)
    assert max(map(len, packed.bins)) >= 3
    model = load_model(tiny.config(kind, vocab_size=tiny_texts.BYTES), TASK).eval()
    model.set_attn_implementation(attention)  # type: ignore[operator]
    for parameter in model.parameters():
        parameter.normal_(0, 0.5)  # attention that matters
    inputs = {k: rows[k] for k in ("input_ids", "position_ids")}
    logits = model(**inputs, use_cache=False).logits
    apart = model(input_ids=alone["input_ids"], attention_mask=alone["attention_mask"]).logits
    for r, members in enumerate(packed.bins):
        begin = 0
        for k in members:
            end = begin + split.lengths[k]
            torch.testing.assert_close(
                logits[r, begin:end], apart[k, : split.lengths[k]], rtol=1e-5, atol=1e-5
            )
            begin = end
    together = model(input_ids=rows["input_ids"], use_cache=False).logits
    assert not torch.allclose(together, logits, atol=1e-2)  # that is what packing has to prevent


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_step_s_loss_and_gradients_are_those_of_the_texts_alone(texts, kind) -> None:
    _, rows, alone = both(texts)
    found = []
    for batch in (rows, alone):
        model = load_model(tiny.config(kind, vocab_size=tiny_texts.BYTES), TASK)
        with torch.no_grad():
            for k, parameter in enumerate(model.parameters()):
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(k))
        loss = TASK.reduce(TASK.hard_loss(TASK.predict(model, batch), batch), batch)
        loss.backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat([loss.detach()[None], *grads]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_packing_is_part_of_what_a_cache_knows_of_the_texts(texts) -> None:
    split, _ = texts
    packed = Packed(split, 12)
    assert packed.row_keys() == len(packed)
    assert packed.column("idx").tolist() == list(range(len(packed)))
    digests = {split.inputs_digest(), packed.inputs_digest(), Packed(split, 30).inputs_digest()}
    assert len(digests) == 3
    assert packed.inputs_digest() == Packed(split, 12).inputs_digest()
    assert np.array_equal(packed[1]["input_ids"], packed[[1]][0]["input_ids"])
