"""The picture of a run with sizes: each metric over the size, beside the runs it is held against.

Colours are Okabe and Ito's, which people who do not see red and green apart can tell from each
other; splits differ in line and marker too. Figures are made without pyplot, so that drawing in
the middle of a program leaves no state behind.
"""

import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lightning_kd.report.summary import Result, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREY = "#0072B2", "#666666"
REFERENCE_COLORS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE_MARKERS = ("D", "P", "X", "^", "v")
SPLIT_LINES = ("-", "--", ":", "-.")
SPLIT_MARKERS = ("o", "s", "^", "v")
AXIS_LABELS = {
    "accuracy": "accuracy (fraction correct)",
    "f1": "F1 (fraction)",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
DOTS_PER_INCH = 150
LOGARITHMIC = ("perplexity",)
"""Metrics that are an exponential: drawn so where their values differ by a factor of 5 or more."""


def plot_sizes(
    summary: Summary,
    references: Sequence[Summary] = (),
    chosen: Sequence[int] = (),
    baseline: float | None = None,
) -> bytes:
    """The PNG of :func:`draw_sizes`, which has the arguments."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw_sizes(summary, references, chosen, baseline)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight")  # cuts nothing
    return buffer.getvalue()


def draw_sizes(
    summary: Summary,
    references: Sequence[Summary] = (),
    chosen: Sequence[int] = (),
    baseline: float | None = None,
) -> "Figure":
    """One panel per metric: value over size with bars of one standard error.

    Args:
        summary: the run; results without a size and values that are not finite are left out.
        references: other runs on the same task; a result without a size is a horizontal line.
        chosen: sizes to ring.
        baseline: first metric of answering the most frequent class, as a dotted line.
    """
    from matplotlib.figure import Figure

    panels = len(summary.metrics)
    figure = Figure(figsize=(2.4 + 4.4 * panels, 4.8), layout="constrained")
    handles: dict[str, Any] = {}  # in the order of the legend
    for index, metric in enumerate(summary.metrics):
        axes = figure.add_subplot(1, panels, index + 1)
        sizes = sorted({*summary.sizes, *(size for other in references for size in other.sizes)})
        _dress(axes, summary, metric, sizes)
        handles |= _draw_run(axes, summary, metric)
        handles |= _draw_references(axes, summary, references, metric)
        handles |= _ring_chosen(axes, summary, metric, chosen)
        if baseline is not None and index == 0:
            handles |= _draw_baseline(axes, summary, metric, baseline)
        _scale_values(axes, metric, [r for run in (summary, *references) for r in run.results])
        axes.autoscale_view()  # a horizontal line inside the limits would end up on their edge
    figure.suptitle(
        f"{summary.method} on {summary.benchmark}/{summary.task}\n{summary.model_name}",
        fontsize="large",
    )
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=1 if panels == 1 and max(map(len, handles), default=0) > 35 else 2,
        frameon=False,
    )
    return figure


def reference_name(reference: Summary, summary: Summary) -> str:
    """What to call a reference beside a run: its method, and its model where that differs."""
    name = reference.method
    if reference.model_name != summary.model_name:
        name += f" ({reference.model_name})"
    return f"{name}, reference" if name == summary.method else name


def _draw_run(axes: "Axes", summary: Summary, metric: str) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for index, split, suffix in _splits(summary):
        points = _points(summary.results, split, metric)
        if not points:
            place = 0.5, 0.9 - 0.08 * index
            axes.annotate(f"no finite value{suffix}", place, xycoords="axes fraction", ha="center")
            continue
        errors = [_error(point) for point in points]
        label = summary.method + suffix + (", ± 1 standard error" if any(errors) else "")
        handles[label] = axes.errorbar(
            _beside(axes, points, index),
            [point.value for point in points],
            yerr=errors if any(errors) else None,
            color=BLUE,
            linestyle=SPLIT_LINES[index % len(SPLIT_LINES)],
            marker=SPLIT_MARKERS[index % len(SPLIT_MARKERS)],
            markerfacecolor=BLUE if index == 0 else "white",
            markersize=5,
            capsize=3,
            elinewidth=1,
            zorder=3,
        )
    return handles


def _draw_references(
    axes: "Axes", summary: Summary, references: Sequence[Summary], metric: str
) -> dict[str, Any]:
    # one series per name: eight LoRA runs of one rank each are one set of points
    named: dict[str, list[Result]] = {}
    for reference in references:
        named.setdefault(reference_name(reference, summary), []).extend(reference.results)
    handles: dict[str, Any] = {}
    slot = len(summary.splits)
    for number, (name, results) in enumerate(named.items()):
        color = REFERENCE_COLORS[number % len(REFERENCE_COLORS)]
        for index, split, suffix in _splits(summary):
            points = _points(results, split, metric)
            if points:
                (handles[name + suffix],) = axes.plot(
                    _beside(axes, points, slot),
                    [point.value for point in points],
                    color=color,
                    linestyle="none",
                    marker=REFERENCE_MARKERS[number % len(REFERENCE_MARKERS)],
                    markerfacecolor=color if index == 0 else "white",
                    markersize=6,
                    zorder=4,
                )
                slot += 1
            lines = [r.value for r in _finite(results, split, metric) if r.size is None]
            if lines:
                handles[name + suffix] = axes.axhline(
                    sum(lines) / len(lines),  # over seeds
                    color=color,
                    linestyle=SPLIT_LINES[index % len(SPLIT_LINES)],
                    linewidth=1.2,
                )
    return handles


def _ring_chosen(
    axes: "Axes", summary: Summary, metric: str, chosen: Sequence[int]
) -> dict[str, Any]:
    first = _points(summary.results, summary.splits[0], metric)
    points = [point for point in first if point.size in chosen]
    if not points:
        return {}
    (rings,) = axes.plot(
        _beside(axes, points, 0),
        [point.value for point in points],
        linestyle="none",
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor="black",
        markeredgewidth=1.5,
        zorder=5,
    )
    return {f"chosen {summary.size_name}": rings}


def _draw_baseline(axes: "Axes", summary: Summary, metric: str, baseline: float) -> dict[str, Any]:
    from matplotlib.lines import Line2D

    points = [p for split in summary.splits for p in _points(summary.results, split, metric)]
    low = min((point.value - _error(point) for point in points), default=baseline)
    high = max((point.value + _error(point) for point in points), default=baseline)
    label = f"majority class ({baseline:.4f})"
    if baseline < low - 3 * (high - low):
        # drawn, it would press what the picture is about into the top of the panel
        return {f"{label}, below the axis": Line2D([], [], color=GREY, linestyle=":")}
    return {label: axes.axhline(baseline, color=GREY, linestyle=":")}


def _dress(axes: "Axes", summary: Summary, metric: str, sizes: Sequence[int]) -> None:
    """Axes, ticks and grid; a base-2 axis where the sizes are powers of two."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

    powers = len(sizes) > 3 and all(size & (size - 1) == 0 < size for size in sizes)
    if powers:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    few = powers or len(sizes) <= 12
    axes.xaxis.set_major_locator(FixedLocator(sizes) if few else MaxNLocator(10, integer=True))
    axes.margins(x=0.06, y=0.1)
    axes.set_xlabel(summary.size_name)
    axes.set_ylabel(AXIS_LABELS.get(metric, metric))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _scale_values(axes: "Axes", metric: str, results: Sequence[Result]) -> None:
    """A logarithmic axis where the worst size would press all others onto the bottom."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    found = [r.value for r in results if r.metric == metric and math.isfinite(r.value)]
    if metric not in LOGARITHMIC or not found or not 0 < 5 * min(found) <= max(found):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.5g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _splits(summary: Summary) -> Iterator[tuple[int, str, str]]:
    """Number and name of each split, and what it adds to a label: nothing if it is the only one."""
    for index, split in enumerate(summary.splits):
        yield index, split, f", {split.replace('_', ' ')}" if len(summary.splits) > 1 else ""


def _finite(results: Sequence[Result], split: str, metric: str) -> list[Result]:
    return [
        result
        for result in results
        if (result.split, result.metric) == (split, metric) and math.isfinite(result.value)
    ]


def _points(results: Sequence[Result], split: str, metric: str) -> list[Result]:
    """The finite results that have a size, by ascending size."""
    points = [result for result in _finite(results, split, metric) if result.size is not None]
    return sorted(points, key=lambda point: point.size or 0)


def _error(point: Result) -> float:
    error = point.standard_error
    return error if error is not None and math.isfinite(error) else 0.0


def _beside(axes: "Axes", points: Sequence[Result], slot: int) -> list[float]:
    """Where to draw sizes: the first series in its place, the others right and left of it.

    So the error bars stay readable where series have nearly the same values.
    """
    shift = 0.12 * ((slot + 1) // 2) * (1 if slot % 2 else -1)
    sizes = [float(point.size or 0) for point in points]
    if axes.get_xscale() == "log":
        return [size * 2**shift for size in sizes]
    return [size + shift for size in sizes]
