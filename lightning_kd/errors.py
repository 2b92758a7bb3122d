"""How a command tells a user what went wrong: one sentence, no trace."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

TRACEBACK = "LIGHTNING_KD_TRACEBACK"
USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, RuntimeError, ImportError)
"""What the library raises for input it cannot use, or an extra it lacks.

Other errors are defects and keep a trace.
"""


def explain(error: BaseException) -> NoReturn:
    """Write the message to standard error and leave with status 1.

    Raises:
        BaseException: The error itself, where ``LIGHTNING_KD_TRACEBACK`` is set.
        SystemExit: Else.
    """
    if os.environ.get(TRACEBACK):
        raise error
    print(f"error: {error}\n({TRACEBACK}=1 shows where)", file=sys.stderr)  # noqa: T201
    raise SystemExit(1)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise `ValueError` where an option is none of those that there are.

    >>> check_choice("reduction", "median", ("mean", "sum"))
    Traceback (most recent call last):
    ValueError: reduction must be mean or sum, got 'median'
    """
    if value not in choices:
        *others, last = choices
        named = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{name} must be {named}, got {value!r}")


__all__ = ["TRACEBACK", "USER_ERRORS", "check_choice", "explain"]
