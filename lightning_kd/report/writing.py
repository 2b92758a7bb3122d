"""Writes the report of a run to its folder and shows it on the terminal.

``summary.json`` is for programs, ``report.md`` is one page for a person, with the curves of the
training; a method with sizes has a plot of them. Each file appears whole or not at all, the numbers
first: whatever goes wrong with a plot or a reference, the numbers of a run are not lost.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lightning_kd.report.curves import plot_curves
from lightning_kd.report.plots import plot_sizes, reference_name
from lightning_kd.report.selection import explain
from lightning_kd.report.summary import Summary
from lightning_kd.report.tables import MARK, Grid, number, result_grids, size_text
from lightning_kd.tasks import best_of

if TYPE_CHECKING:
    from rich.console import Console

CURVES = "curves.png"
Exports = Mapping[int, Path] | Mapping[int | None, Path]


def write_report(
    run_dir: Path,
    summary: Summary,
    references: Sequence[Path] = (),
    chosen: Sequence[int] = (),
    exports: Exports = MappingProxyType({}),
    baseline: float | None = None,
) -> None:
    """Writes ``summary.json``, ``report.md`` and, where there are sizes, a plot to ``report/``.

    Args:
        run_dir: folder of the run; the report goes into its ``report`` folder.
        summary: what the run found.
        references: run folders or ``summary.json`` files to draw and list beside it.
        chosen: sizes to mark.
        exports: the folder each size was exported to, with None for a model without sizes.
        baseline: first metric of answering the most frequent class.

    Raises:
        FileNotFoundError: if a reference has no summary.
        ValueError: if a reference is of another task. The run's own ``summary.json`` is safe then.
    """
    folder = run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(summary.to_json(), indent=2, allow_nan=False) + "\n"
    _write(folder / "summary.json", text.encode())
    others = read_references(references, summary.benchmark, summary.task)
    if summary.sizes:
        picture = plot_sizes(summary, list(others.values()), chosen, baseline)
        _write(folder / _plot_name(summary), picture)
    levels = _levels(summary, others, baseline)
    curves = plot_curves(run_dir / "metrics.csv", levels, summary.metrics[0], summary.size_name)
    if curves is not None:
        _write(folder / CURVES, curves)
    page = _page(folder, summary, others, chosen, exports, baseline)
    _write(folder / "report.md", page.encode())


def _levels(
    summary: Summary, references: Mapping[Path, Summary], baseline: float | None
) -> dict[str, float]:
    """What to draw across the validated metric: the best of each reference, and the baseline."""
    split, metric = summary.splits[0], summary.metrics[0]
    levels = {} if baseline is None else {"most frequent class": baseline}
    for path, other in references.items():
        values = [r.value for r in other.results if (r.split, r.metric) == (split, metric)]
        if values:
            best = min if best_of(metric) == "min" else max
            levels[_name(path, other, summary)] = best(values)
    return levels


def _name(path: Path, reference: Summary, summary: Summary) -> str:
    """A teacher that a run trained itself is in that folder of it."""
    return "teacher" if path.name == "teacher" else reference_name(reference, summary)


def read_references(paths: Sequence[Path], benchmark: str, task: str) -> dict[Path, Summary]:
    """Summaries to list beside a run of ``task``.

    Raises:
        FileNotFoundError: if there is no summary at a path.
        ValueError: if one is of another task.
    """
    references = {path: Summary.read(path) for path in paths}
    for path, other in references.items():
        if (other.benchmark, other.task) != (benchmark, task):
            raise ValueError(
                f"the reference {path} is of {other.benchmark}/{other.task}, "
                f"this run of {benchmark}/{task}; leave it out"
            )
    return references


def show(
    summary: Summary,
    run_dir: Path,
    chosen: Sequence[int] = (),
    exports: Exports = MappingProxyType({}),
    console: "Console | None" = None,
) -> None:
    """Prints the table of results and where things were written.

    Args:
        summary: what the run found.
        run_dir: folder of the run.
        chosen: sizes to mark.
        exports: as for :func:`write_report`.
        console: to print on; standard output by default.
    """
    from rich.console import Console

    console = console or Console()

    def say(line: str = "") -> None:
        # a path must come out in one piece and as it is, to be copied
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    say(f"\n{_title(summary)}, {summary.model_name}\n")
    for grid in result_grids(summary, chosen):
        console.print(grid)
    if summary.sizes:
        reason = f"{MARK} {explain(summary, chosen)}" if chosen else explain(summary, chosen)
        console.print(reason, markup=False, highlight=False)
    else:
        say(f"Trainable parameters: {_parameters(summary)}")
    for name, value in summary.noted():
        say(f"{name.capitalize()}: {value}")
    say(f"\nAfter {_seconds(summary)}, written:")
    for name, path in _places(summary, run_dir, exports):
        say(f"  {name:<12} {_from_here(path)}")


def _page(
    folder: Path,
    summary: Summary,
    references: Mapping[Path, Summary],
    chosen: Sequence[int],
    exports: Exports,
    baseline: float | None,
) -> str:
    """``report.md``: the answer first, then the picture, the numbers and how to repeat them."""
    if summary.sizes:
        name = _plot_name(summary)
        opening = [explain(summary, chosen), f"![Results by {summary.size_name}]({name})"]
    else:
        opening = [f"Trainable parameters: {_parameters(summary)}"]
    grids = [str(grid) for grid in result_grids(summary, chosen)]
    blocks = [f"# {_title(summary)}", *opening, "## Results", *grids]
    if chosen:
        blocks.append(f"\\{MARK} chosen")
    if any(result.standard_error is not None for result in summary.results):
        blocks.append("± is one standard error, by resampling the examples.")
    if baseline is not None:
        blocks.append(
            f"Always answering the most frequent class gives {summary.metrics[0]} "
            f"{number(baseline)}."
        )
    if (folder / CURVES).is_file():
        blocks += ["## Training", f"![Loss, schedules and validation]({CURVES})"]
    if exports:
        blocks += ["## Exports", "\n".join(_export_lines(summary, exports, folder))]
    if references:
        blocks += ["## References", str(_reference_grid(summary, references, folder))]
    blocks += ["## What ran", str(_facts(summary))]
    return "\n\n".join(blocks) + "\n"


def _export_lines(summary: Summary, exports: Exports, folder: Path) -> Iterator[str]:
    for size, path in exports.items():
        what = "model" if size is None else f"{summary.size_name} {size}"
        yield f"- {what}: [{path.name}]({_link(path, folder)})"


def _facts(summary: Summary) -> Grid:
    facts = [
        ("method", summary.method),
        ("model", summary.model_name),
        ("task", f"{summary.benchmark}/{summary.task}"),
        ("seed", str(summary.seed)),
        ("wall time", _seconds(summary)),
        ("data, SHA-256", summary.data_sha256),
        *summary.noted(),
        *((name, str(value)) for name, value in summary.environment.items()),
    ]
    return Grid("", ("what", "value"), facts, left_aligned=2)


def _reference_grid(summary: Summary, references: Mapping[Path, Summary], folder: Path) -> Grid:
    rows = []
    for path, other in references.items():
        name = _name(path, other, summary)
        if other.trained_on != summary.trained_on:
            name += ", other data"
        for result in other.results:
            if result.split in summary.splits and result.metric in summary.metrics:
                values = (size_text(result.size), f"{result.trainable_parameters:,}")
                words = (f"[{name}]({_link(path, folder)})", result.split, result.metric)
                rows.append((*words, str(other.seed), *values, number(result.value)))
    header = ("method", "split", "metric", "seed", "size", "trainable parameters", "value")
    return Grid("", header, rows, left_aligned=3)


def _places(summary: Summary, run_dir: Path, exports: Exports) -> Iterator[tuple[str, Path]]:
    """What a user looks for after a run, as far as it is there."""
    places = {
        "config": run_dir / "config.yaml",
        "checkpoints": run_dir / "checkpoints",
        "metrics": run_dir / "metrics.csv",
        "report": run_dir / "report" / "report.md",
        "plot": run_dir / "report" / _plot_name(summary),
        "curves": run_dir / "report" / CURVES,
    }
    yield from ((name, path) for name, path in places.items() if path.exists())
    for size, path in exports.items():
        yield "export" if size is None else f"{summary.size_name} {size}", path


def _link(path: Path, folder: Path) -> str:
    """For Markdown in ``folder``; relative, so that the run folder can be moved as a whole."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _write(path: Path, content: bytes) -> None:
    """Replaces a file in one step: a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _title(summary: Summary) -> str:
    return f"{summary.method} on {summary.benchmark}/{summary.task}"


def _plot_name(summary: Summary) -> str:
    return f"{summary.size_name}s.png"


def _parameters(summary: Summary) -> str:
    return f"{max((result.trainable_parameters for result in summary.results), default=0):,}"


def _seconds(summary: Summary) -> str:
    known = math.isfinite(summary.seconds)
    return f"{summary.seconds:.1f} seconds" if known else "an unknown time"


def _from_here(path: Path) -> Path:
    """Relative to where the user stands, if it is below; the path as given otherwise."""
    here = Path.cwd()
    whole = path.absolute()
    return whole.relative_to(here) if whole.is_relative_to(here) else path
