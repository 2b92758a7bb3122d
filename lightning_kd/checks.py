"""Errors for settings outside of their range: the name, the rule, the value."""

from collections.abc import Sequence

__all__ = ["check_at_least", "check_choice"]


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


def check_at_least(least: int, **values: int | None) -> None:
    """Raise `ValueError` for the first of the named values that is below; None passes."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
