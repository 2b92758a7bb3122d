"""The picture of a training: what was minimized, what moved by itself, and what validation said.

Drawn from a run's ``metrics.csv``. Phases follow each other on one axis, with a line between them.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_kd.report.plots import (
    AXIS_LABELS,
    BLUE,
    DOTS_PER_INCH,
    GREY,
    REFERENCE_COLORS,
    SPLIT_LINES,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "plot_curves", "read_metrics"]

Series = dict[str, list[tuple[float, float]]]
_HIDDEN = {"epoch", "step", "phase", "train/grad_norm", "train/learning_rate"}


def read_metrics(path: Path) -> tuple[Series, list[tuple[str, float]]]:
    """What a ``metrics.csv`` has, by name: ``(step, value)``; and each phase's name and first step.

    The steps of a phase go on where the phase before it ended.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found: Series = {}
    phases: list[tuple[str, float]] = []
    offset = last = 0.0
    for row in rows:
        phase = row.get("phase", "")
        if not phases or phases[-1][0] != phase:
            offset = last
            phases.append((phase, offset))
        last = max(last, offset + float(row["step"]) + 1)
        for name, text in row.items():
            if name not in _HIDDEN and text and math.isfinite(float(text)):
                found.setdefault(name, []).append((offset + float(row["step"]) + 1, float(text)))
    return found, phases


def draw_curves(
    metrics: Series,
    phases: Sequence[tuple[str, float]] = (),
    levels: Mapping[str, float] | None = None,
    metric: str = "accuracy",
) -> "Figure":
    """One panel each for the loss terms, the schedules and the validated metric, over steps.

    Args:
        metrics: As `read_metrics` gives them.
        phases: Name and first step of each; a single one is not marked.
        levels: Values of the metric to draw across, by name: a teacher's, a baseline's.
        metric: The one to draw; ``val/<metric>`` has it, or ``val/mean/<metric>``.
    """
    from matplotlib.figure import Figure

    scored = [n for n in (f"val/{metric}", f"val/mean/{metric}") if n in metrics]
    terms = [name for name in metrics if name.startswith("train/")]
    moving = [n for n in metrics if not n.startswith(("train/", "val/", "test/"))]
    panels = [("loss term", terms), ("schedule", moving), (AXIS_LABELS.get(metric, metric), scored)]
    panels = [(label, names) for label, names in panels if names]
    figure = Figure(figsize=(6.4, 2.4 * max(len(panels), 1)), layout="constrained")
    grid: Any = figure.subplots(len(panels) or 1, sharex=True, squeeze=False)
    axes: list[Axes] = list(grid[:, 0])
    for ax, (label, names) in zip(axes, panels, strict=False):
        for i, name in enumerate(names):
            color = (BLUE, *REFERENCE_COLORS)[i % (1 + len(REFERENCE_COLORS))]
            style: dict[str, Any] = {"color": color, "linestyle": SPLIT_LINES[i % len(SPLIT_LINES)]}
            steps, values = zip(*metrics[name], strict=True)
            marker = "o" if len(steps) <= 30 else ""
            short = name.removeprefix("train/")
            ax.plot(steps, values, label=short, marker=marker, markersize=3, **style)
        ax.set_ylabel(label)
        if names is scored:
            _draw_levels(ax, levels or {})
        for name, step in phases if len(phases) > 1 else ():
            if step > 0:
                ax.axvline(step, color=GREY, linewidth=0.8)
            if ax is axes[0]:
                place: dict[str, Any] = {
                    "xycoords": ("data", "axes fraction"),
                    "fontsize": 8,
                    "color": GREY,
                }
                ax.annotate(f" {name}", (step, 1.02), **place)
        ax.legend(fontsize=8, frameon=False)
        ax.grid(alpha=0.3)
    axes[-1].set_xlim(left=0)  # where the first phase has its name
    axes[-1].set_xlabel("optimizer steps")
    return figure


def _draw_levels(ax: "Axes", levels: Mapping[str, float]) -> None:
    named: dict[float, list[str]] = {}
    for name, level in levels.items():
        named.setdefault(level, []).append(name)  # names of equal levels would cover each other
    for level, names in named.items():
        ax.axhline(level, color=GREY, linestyle="--", linewidth=1)
        where: Any = ("axes fraction", "data")
        ax.annotate(", ".join(names), (1, level), xycoords=where, fontsize=8)


def plot_curves(
    path: Path,
    levels: Mapping[str, float] | None = None,
    metric: str = "accuracy",
    size_name: str = "rank",
) -> bytes | None:
    """The PNG of `draw_curves` for a ``metrics.csv``; None where it has nothing to draw.

    The size drawn for each step (``train/<size_name>``) is left out: it is no curve.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if not path.is_file():
        return None
    metrics, phases = read_metrics(path)
    metrics.pop(f"train/{size_name}", None)
    if not metrics:
        return None
    figure = draw_curves(metrics, phases, levels, metric)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight")
    return buffer.getvalue()
