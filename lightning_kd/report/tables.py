"""Tables: the results of one run, on the terminal and in Markdown; many runs side by side."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_kd.report.summary import Result, Summary

if TYPE_CHECKING:
    from rich.table import Table

MARK = "*"


@dataclass(frozen=True)
class Grid:
    """Rows of text: ``console.print`` draws them as a table, ``str`` gives Markdown.

    Args:
        title: above the table; empty for none.
        header: name of each column.
        rows: cells of each row.
        left_aligned: number of columns, from the left, that hold words and not numbers.
        marked: indices of the rows to print in bold on a terminal.

    >>> print(Grid("", ("rank", "accuracy"), [("1", "0.5000")]))
    | rank | accuracy |
    |---:|---:|
    | 1 | 0.5000 |
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left_aligned: int = 0
    marked: frozenset[int] = frozenset()

    def __str__(self) -> str:
        header, *rows = (
            f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
            for row in (self.header, *self.rows)
        )
        left = self.left_aligned
        rule = "|" + ":---|" * left + "---:|" * (len(self.header) - left)
        title = [f"**{self.title}**", ""] if self.title else []
        return "\n".join([*title, header, rule, *rows])

    def __rich__(self) -> "Table":
        from rich import box
        from rich.table import Table
        from rich.text import Text

        title = Text(self.title, style="bold") if self.title else None
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for index, name in enumerate(self.header):
            side: Literal["left", "right"] = "left" if index < self.left_aligned else "right"
            table.add_column(Text(name), justify=side, overflow="fold")
        for index, row in enumerate(self.rows):
            style = "bold" if index in self.marked else ""
            table.add_row(*(Text(cell, style) for cell in row))
        return table


def result_grids(summary: Summary, chosen: Sequence[int] = ()) -> list[Grid]:
    """One table per split with a row per size; one table in all for a method without sizes.

    Args:
        summary: of the run.
        chosen: sizes to mark with a star.
    """
    if not summary.sizes:
        values = [(r.split, r.metric, number(r.value, r.standard_error)) for r in summary.results]
        grid = Grid("", ("split", "metric", "value"), values, left_aligned=2)
        return [_without_constant_columns(grid, ("split",))]
    timed = any(result.seconds is not None for result in summary.results)
    header = [summary.size_name, "trainable parameters", *summary.metrics]
    header += ["seconds"] if timed else []
    grids = []
    for split in summary.splits:
        by_size: dict[int | None, list[Result]] = {}
        for result in summary.results:
            if result.split == split:
                by_size.setdefault(result.size, []).append(result)
        sizes = sorted(by_size, key=lambda size: -1 if size is None else size)
        rows = [_row(by_size[size], summary.metrics, size in chosen, timed) for size in sizes]
        marked = frozenset(index for index, size in enumerate(sizes) if size in chosen)
        grids.append(Grid(f"split {split}", header, rows, marked=marked))
    return grids


def _row(results: Sequence[Result], metrics: Sequence[str], marked: bool, timed: bool) -> list[str]:
    """All metrics of one size on one split; one pass over the split gave them all."""
    values = {result.metric: number(result.value, result.standard_error) for result in results}
    times = [result.seconds for result in results if result.seconds is not None]
    size = size_text(results[0].size)
    row = [f"{MARK} {size}" if marked else size, f"{results[0].trainable_parameters:,}"]
    row += [values.get(metric, "-") for metric in metrics]
    return [*row, f"{max(times):.1f}" if times else "-"] if timed else row


def compare(paths: Sequence[Path]) -> Grid:
    """One row per method, model, task, split, metric and size: mean and deviation over runs.

    Runs on different data are never averaged. The same path given twice counts once.

    Args:
        paths: run folders, report folders or ``summary.json`` files.

    Returns:
        A table for ``console.print`` or, through ``str``, in Markdown. What is the same in every
        row is said once, in the title.

    Raises:
        FileNotFoundError: if there is no summary at a path.
        ValueError: if there are no paths or a file is something else.
    """
    if not paths:
        raise ValueError("compare needs at least one run; give run folders or summary.json files")
    groups: dict[tuple[str, str, str, str, str, str, str], list[float]] = {}
    for path in dict.fromkeys(path.resolve() for path in paths):
        summary = Summary.read(path)
        task = f"{summary.benchmark}/{summary.task}"
        run = (summary.method, summary.model_name, task, summary.trained_on)
        for result in summary.results:
            key = (*run, result.split, result.metric, size_text(result.size))
            groups.setdefault(key, []).append(result.value)
    rows = []
    for key, values in groups.items():
        mean = statistics.fmean(values)
        several = len(values) > 1 and math.isfinite(mean)
        spread = statistics.stdev(values) if several else None
        rows.append((*key, number(mean, spread), str(len(values))))
    header = ("method", "model", "task", "data", "split", "metric", "size", "mean ± std", "runs")
    grid = Grid("", header, rows, left_aligned=6)
    return _without_constant_columns(grid, ("model", "task", "data", "split", "metric"))


def number(value: float, error: float | None = None) -> str:
    """A value with its uncertainty, where there is one.

    >>> number(0.8125, 0.00625), number(0.5), number(math.nan)
    ('0.8125 ± 0.0063', '0.5000', 'not finite')
    >>> number(23.45678, 0.5), number(1234567.0)
    ('23.46 ± 0.50', '1.23e+06')
    """
    if not math.isfinite(value):
        return "not finite"
    # Four decimals of a share; of a perplexity about as many digits.
    size = abs(value)
    form = ".4f" if size < 10 else ".2f" if size < 1000 else ".1f" if size < 1e5 else ".2e"
    known = error is not None and math.isfinite(error)
    return f"{value:{form}} ± {error:{form}}" if known else f"{value:{form}}"


def size_text(size: int | None) -> str:
    """A size for a table; a dash where there is none."""
    return "-" if size is None else str(size)


def _without_constant_columns(grid: Grid, names: Sequence[str]) -> Grid:
    """Moves those of the named columns that have one value only to the title."""
    constant = {
        index: f"{name} {grid.rows[0][index]}"
        for index, name in enumerate(grid.header)
        if name in names and len({row[index] for row in grid.rows}) == 1
    }
    keep = [index for index in range(len(grid.header)) if index not in constant]
    return Grid(
        ", ".join(constant.values()),
        [grid.header[index] for index in keep],
        [[row[index] for index in keep] for row in grid.rows],
        left_aligned=sum(index < grid.left_aligned for index in keep),
    )
