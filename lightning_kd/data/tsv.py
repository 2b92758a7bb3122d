"""Reader of the tab-separated files that GLUE was published in.

These are not CSV files: a quotation mark is part of the text, nothing is escaped, a line feed ends
a row. Nothing is skipped silently: a row that cannot be used is an error with file and line, or,
where the published files are known to have such rows, counted in one warning per file.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # MRPC's files begin with one


@dataclass(frozen=True)
class TsvLayout:
    """How one task's files are laid out.

    Args:
        texts: names of the one or two text columns.
        label: name of the label column; a file without it is unlabelled.
        columns: the columns of a file that has no header (CoLA); `None`: the first line names them.
        header_anyway: the header of a file that has one although `columns` are given (CoLA's test).
        no_answer: label of rows on which the annotators did not agree (MNLI); they are left out.
        ragged: leave out rows with a wrong number of columns, of which QQP's published files have
            some; they are an error elsewhere.
    """

    texts: tuple[str, ...]
    label: str
    columns: tuple[str, ...] | None = None
    header_anyway: tuple[str, ...] | None = None
    no_answer: str | None = None
    ragged: bool = False


def read_tsv(
    path: Path, layout: TsvLayout, parse_label: Callable[[str], int | float]
) -> dict[str, list[Any]]:
    """The examples of a file as columns `idx`, `sentence1`, `sentence2` (pairs), `label` (if any).

    Args:
        path: the file.
        layout: its columns.
        parse_label: turns the published label into a class number or a score; its `ValueError` gets
            file and line.

    Returns:
        Columns of equal length. `idx` is the row's position in the file, from 0, counting rows that
        were left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty file, a missing column, a malformed row or a bad label.
    """
    lines = _lines(path)
    if not lines:
        raise ValueError(f"{path} is empty; expected tab-separated rows with {_named(layout)}")
    header, first = _header(lines[0], layout)
    texts = {f"sentence{k}": _position(path, header, n) for k, n in enumerate(layout.texts, 1)}
    label_at = header.index(layout.label) if layout.label in header else None
    out: dict[str, list[Any]] = {"idx": [], **{name: [] for name in texts}}
    if label_at is not None:
        out["label"] = []
    for position, fields in _rows(path, lines, header, first, layout):
        out["idx"].append(position)
        for name, place in texts.items():
            out[name].append(fields[place])
        if label_at is not None:
            try:
                out["label"].append(parse_label(fields[label_at]))
            except ValueError as error:
                raise ValueError(f"{path}, line {position + first + 1}: {error}") from None
    if not out["idx"]:
        raise ValueError(f"{path} has no examples, only {len(lines)} line(s)")
    return out


def _rows(
    path: Path, lines: list[str], header: Sequence[str], first: int, layout: TsvLayout
) -> Iterator[tuple[int, list[str]]]:
    """Position and columns of the rows that can be used."""
    ragged: list[int] = []
    undecided: list[int] = []
    for position, line in enumerate(lines[first:]):
        fields, number = line.split("\t"), position + first + 1
        if len(fields) != len(header):
            if not layout.ragged:
                raise ValueError(
                    f"{path}, line {number}: expected {len(header)} tab-separated columns "
                    f"({', '.join(header)}), got {len(fields)}"
                )
            ragged.append(number)
        elif layout.no_answer is not None and layout.no_answer in _label_of(fields, header, layout):
            undecided.append(number)
        else:
            yield position, fields
    _warn_left_out(path, "with a wrong number of columns", ragged)
    _warn_left_out(path, f"labelled {layout.no_answer!r}", undecided)


def _label_of(fields: list[str], header: Sequence[str], layout: TsvLayout) -> list[str]:
    return [f for f, name in zip(fields, header, strict=True) if name == layout.label]


def _lines(path: Path) -> list[str]:
    raw = path.read_bytes().removeprefix(_BYTE_ORDER_MARK).rstrip(b"\r\n")
    return list(_decoded(path, raw.split(b"\n"))) if raw else []


def _decoded(path: Path, lines: Sequence[bytes]) -> Iterator[str]:
    # line by line, because text may hold characters that Python's own line splitting stops at
    for number, line in enumerate(lines, 1):
        try:
            yield line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason})") from None


def _header(line: str, layout: TsvLayout) -> tuple[tuple[str, ...], int]:
    """Column names and the number of lines they take up."""
    fields = tuple(line.split("\t"))
    if layout.columns is not None and fields != layout.header_anyway:
        return layout.columns, 0
    return fields, 1


def _position(path: Path, header: Sequence[str], name: str) -> int:
    if name not in header:
        raise ValueError(
            f"{path}, line 1: there is no column {name!r}; its columns are {', '.join(header)}"
        )
    return header.index(name)


def _named(layout: TsvLayout) -> str:
    return "columns " + ", ".join((*layout.texts, layout.label))


def _warn_left_out(path: Path, reason: str, numbers: list[int]) -> None:
    if numbers:
        rank_zero_warn(
            f"{path}: left out {len(numbers)} row(s) {reason}, the first in line {numbers[0]}"
        )
