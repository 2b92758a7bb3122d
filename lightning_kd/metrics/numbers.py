"""Whether the number that a text ends in is right, as GSM8K asks."""

import re
from collections.abc import Sequence
from decimal import Decimal

import torch
from torch import Tensor

_NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARK = "####"


def final_answer(text: str) -> Decimal | None:
    """The first number after the first `####`, whatever unit is around it; None: there is none.

    >>> final_answer("48 / 2 = 24 #### $1,234.50 per day.")
    Decimal('1234.5')
    >>> final_answer("It is 24.") is None
    True
    """
    _, mark, after = text.partition(_MARK)
    found = _NUMBER.search(after.split("\n")[0] if mark else "")
    return None if found is None else _value(found.group())


def last_number(text: str) -> Decimal | None:
    """The last number of a text; None: it has none.

    >>> last_number("24 and 48, that is 72.0.")
    Decimal('72')
    """
    found = _NUMBER.findall(text)
    return _value(found[-1]) if found else None


def final_answer_match(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """1 where the `final_answer` is that of a true text; a text without `####` is wrong.

    Numbers are compared as numbers: thousands separators, a closing point, `$` and units in words
    do not matter.

    >>> final_answer_match(["so #### 1,000.", "1000"], [["#### 1000"], ["#### 1000"]])
    tensor([1., 0.])
    """
    return _matches([final_answer(text) for text in texts], truths)


def last_number_match(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> Tensor:
    """1 where the last number of a text is the `final_answer` of a true one.

    Kinder than `final_answer_match` to a model that was not taught the `####`.

    >>> last_number_match(["it is 1,000"], [["#### 1000"]])
    tensor([1.])
    """
    return _matches([last_number(text) for text in texts], truths)


def _matches(found: Sequence[Decimal | None], truths: Sequence[Sequence[str]]) -> Tensor:
    pairs = zip(found, truths, strict=True)
    return torch.tensor(
        [float(x is not None and x in [final_answer(truth) for truth in xs]) for x, xs in pairs]
    )


def _value(number: str) -> Decimal:
    plain = Decimal(number.replace(",", "").replace("$", ""))
    return plain.normalize() if plain % 1 else plain.quantize(Decimal(1))


__all__ = ["final_answer", "final_answer_match", "last_number", "last_number_match"]
