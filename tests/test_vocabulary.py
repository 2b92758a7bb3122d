"""A common vocabulary is proven or refused, with both sizes named."""

import pytest

from lightning_kd.vocabulary import common_vocabulary

WORDS = {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize(("student", "teacher"), [(3, 3), (3, 8), (8, 4)])
def test_padding_rows_are_cut(student, teacher) -> None:
    assert common_vocabulary(WORDS, dict(reversed(WORDS.items())), student, teacher) == min(
        student, teacher
    )


def test_tokens_that_changed_places_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"\(3 tokens, 3 rows\).*\(3 tokens, 8 rows\) differ: 0 is "
    ):
        common_vocabulary(WORDS, {"b": 0, "a": 1, "c": 2}, 3, 8)


@pytest.mark.parametrize("number", [3, 7])
def test_a_token_that_only_one_has_is_refused(number) -> None:
    with pytest.raises(ValueError, match=f"{number} is None and '<pad>'"):
        common_vocabulary(WORDS, {**WORDS, "<pad>": number}, 8, 8)


def test_a_token_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="token 'c' is 2 and has no row"):
        common_vocabulary(WORDS, WORDS, 2, 3)
