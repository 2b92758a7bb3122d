"""From prompts and texts to tokens: begun once, cut as documented, ended once."""

from typing import Any

import pytest
import torch
from datasets import Dataset

from lightning_kd.data.texts import TextPadding, encode_prompt, following, tokenize_texts
from tests import tiny_texts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tokenizers by their options."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizers")

    def build(kind: str = "byte", **options: Any) -> Any:
        name = "-".join([kind, *map(str, options.items())])
        if not (folder / name).exists():
            make = {"byte": tiny_texts.byte_tokenizer, "prefix": tiny_texts.prefix_tokenizer}
            make[kind](folder / name, **options)
        return AutoTokenizer.from_pretrained(folder / name)

    return build


def encoded(tokenizer, *pairs, max_length=64, **options) -> list[tuple[list[int], int]]:
    columns = {"sentence1": [p for p, _ in pairs], "sentence2": [t for _, t in pairs]}
    examples = Dataset.from_dict({"idx": list(range(len(pairs))), **columns})
    table = tokenize_texts(examples, tokenizer, max_length, **options)
    assert table["idx"].to_pylist() == list(range(len(pairs)))
    return list(
        zip(table["input_ids"].to_pylist(), table["prompt_lengths"].to_pylist(), strict=True)
    )


def test_a_row_is_the_prompt_the_text_and_one_end(made) -> None:
    tokenizer = made()
    ((tokens, prompt),) = encoded(tokenizer, ("Why?", " So."))
    assert prompt == 4
    assert tokenizer.decode(tokens) == "Why? So.</s>"
    assert tokens[-1] == tokenizer.eos_token_id


UNICODE = ["é", "日本語", "👩‍👧", "a\u0301", "\u200b", "\ufeff", "tab\tline\nend", "  two  "]


@pytest.mark.parametrize("text", [*UNICODE, ""])
def test_any_text_comes_back_and_an_empty_one_is_its_end(made, text) -> None:
    tokenizer = made()
    ((tokens, prompt),) = encoded(tokenizer, ("ü:", text))
    assert tokenizer.decode(tokens[:prompt]) == "ü:"
    assert tokenizer.decode(tokens[prompt:]) == f"{text}</s>"


def test_a_beginning_token_is_there_once_and_an_end_token_only_at_the_end(made) -> None:
    for options in ({"bos": True}, {"bos": True, "eos": True}, {"eos": True}):
        tokenizer = made(**options)
        ((tokens, prompt),) = encoded(tokenizer, ("ab", "cd"))
        begun = [tokenizer.bos_token_id] * options.get("bos", False)
        assert tokens[:prompt] == [*begun, *tokenizer("ab", add_special_tokens=False).input_ids]
        assert tokens.count(tokenizer.eos_token_id) == 1
        assert encode_prompt(tokenizer, "ab", chat=False) == tokens[:prompt]


def test_a_chat_template_brings_its_own_beginning(made) -> None:
    tokenizer = made(bos=True, chat=True)
    ((tokens, prompt),) = encoded(tokenizer, ("ab", "cd"), chat=True)
    assert tokenizer.decode(tokens) == "<s><|user|>ab</s><|assistant|>cd</s>"
    turns = [{"role": "user", "content": "ab"}]
    theirs = tokenizer.apply_chat_template(turns, add_generation_prompt=True).input_ids
    assert tokens[:prompt] == theirs
    assert tokens.count(tokenizer.bos_token_id) == 1
    assert encode_prompt(tokenizer, "ab", chat=True) == theirs


def test_a_tokenizer_that_begins_with_a_space_does_not_in_the_middle(made) -> None:
    """Llama 2's alone would write "▁cd" behind a line break, and two spaces behind a colon."""
    tokenizer = made("prefix")
    for prompt, text in (("ab\n", "cd"), ("ab:", " cd")):
        ((tokens, first),) = encoded(tokenizer, (prompt, text))
        whole = tokenizer(prompt + text).input_ids
        assert tokens == [*whole, tokenizer.eos_token_id]
        assert tokens[:first] == tokenizer(prompt).input_ids
        assert tokenizer.decode(tokens[first:-1]) == text


def test_prompt_and_text_that_would_melt_together_stay_apart(tmp_path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "</s>": 3}, merges=[("a", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")  # noqa: S106
    assert tokenizer("ab").input_ids == [2]
    assert encoded(tokenizer, ("a", "ba")) == [([0, 1, 0, 3], 1)]


def test_of_a_long_example_the_prompt_s_beginning_goes_first(made) -> None:
    tokenizer = made(bos=True)
    prompt, text = "0123456789", "abcde"
    for length, (first, rest) in {
        17: ("<s>0123456789", "abcde</s>"),
        12: ("<s>56789", "abcde</s>"),  # 12 - 6 tokens for the prompt, and it is begun
        8: ("<s>789", "abcd"),  # half of it for the prompt, so the text's end goes
        3: ("9", "ab"),  # no room for a beginning
        2: ("9", "a"),
    }.items():
        ((tokens, size),) = encoded(tokenizer, (prompt, text), max_length=length)
        assert tokenizer.decode(tokens[:size]) == first, length
        assert tokenizer.decode(tokens[size:]) == rest, length
        assert len(tokens) <= length
    # a short text leaves the prompt more than half
    ((tokens, size),) = encoded(tokenizer, (prompt, ""), max_length=8)
    assert tokenizer.decode(tokens) == "<s>456789</s>"


def test_nothing_at_all_goes_on_from_an_end_token(made) -> None:
    tokenizer = made()
    end = tokenizer.eos_token_id
    assert encoded(tokenizer, ("", "")) == [([end, end], 1)]
    assert encode_prompt(tokenizer, "", chat=False) == [end]
    assert encoded(made(bos=True), ("", ""))[0][0] == [1, 2]


def test_without_an_end_token_a_model_would_never_stop(made) -> None:
    tokenizer = made()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"has no end token.*set its eos_token"):
        encoded(tokenizer, ("a", "b"))


def test_more_than_one_chunk_of_examples(made) -> None:
    tokenizer = made(bos=True)
    pairs = [(f"{i}?", f" {i * i}") for i in range(1003)]
    rows = encoded(tokenizer, *pairs)
    for i in (0, 999, 1000, 1002):
        assert rows[i] == encoded(tokenizer, pairs[i])[0]


def test_a_text_goes_on_with_a_space_unless_there_is_one() -> None:
    assert following("a:", "b") == " b"
    assert [following(end, "b") for end in ("a: ", "a\n", "a\t", "")] == ["b"] * 4


def row(tokens, prompt, idx, **more) -> dict[str, Any]:
    return {"input_ids": tokens, "prompt_lengths": prompt, "idx": idx, **more}


def test_padding_is_no_target_even_where_it_looks_like_the_end(made) -> None:
    tokenizer = made(pad=False)
    tokenizer.pad_token = tokenizer.eos_token  # as for GPT-2
    rows = [row([7, 8, 9, 2], 2, 5), row([7, 2], 1, 3)]
    batch = TextPadding(tokenizer)(rows)
    assert batch["input_ids"].tolist() == [[7, 8, 9, 2], [7, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 9, 2], [-100, 2, -100, -100]]
    assert (batch["prompt_lengths"].tolist(), batch["idx"].tolist()) == ([2, 1], [5, 3])
    assert "generate" not in batch
    whole = TextPadding(tokenizer, mask_prompt=False)(rows)
    assert whole["labels"].tolist() == [[7, 8, 9, 2], [7, 2, -100, -100]]
    asked = TextPadding(tokenizer)([{**r, "generate": r["idx"] == 3} for r in rows])
    assert torch.equal(asked["generate"], torch.tensor([False, True]))
