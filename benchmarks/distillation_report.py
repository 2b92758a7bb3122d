"""Tables and plots of `distillation_evidence.py`'s runs, written into a page between its markers.

python benchmarks/distillation_report.py docs/evidence/distillation.md reviews=FILE.jsonl
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.distillation_arms import ARMS, RIVALS
from lightning_kd.statistics import minimal_detectable_effect, paired_interval
from lightning_kd.tasks import task_named

Record = dict[str, Any]


class Runs:
    """The reported runs of one file and cut: by noise and arm, then by seed."""

    def __init__(self, records: Sequence[Record], cut: int) -> None:
        self.metric = task_named(records[0]["options"]["task"]).monitor
        self.cut, self.records = cut, [r for r in records if r["cut"] == cut]
        self.arms: dict[tuple[float, str], dict[int, Record]] = {}
        self.failed: dict[tuple[float, str], int] = {}
        for record in (r for r in self.records if r["stage"] == "report"):
            place = record["noise"], record["arm"]
            if record["failed"]:
                self.failed[place] = self.failed.get(place, 0) + 1
            else:
                self.arms.setdefault(place, {})[record["seed"]] = record

    def names(self, noise: float) -> list[str]:
        """Arms with a finished run, in the order of `ARMS`."""
        return [name for name in ARMS if (noise, name) in self.arms]

    @property
    def noises(self) -> list[float]:
        """Rates of wrong labels, ascending."""
        return sorted({noise for noise, _ in self.arms})

    def points(self, noise: float, arm: str, state: str = "") -> dict[int, float]:
        """Seed to the metric in points: of the best epoch, the ``last`` or the ``raw`` weights."""
        runs = self.arms.get((noise, arm), {})
        scores = {s: r["scores"].get(state, r["scores"]) for s, r in runs.items()}
        return {seed: 100 * found[self.metric] for seed, found in scores.items()}

    def mean(self, noise: float, arm: str, score: str) -> float:
        """Of another score."""
        return fmean(r["scores"][score] for r in self.arms[noise, arm].values())


def cell(points: Sequence[float]) -> str:
    """Mean and deviation over seeds.

    >>> cell([70.0, 71.0, 72.0]), cell([70.0]), cell([])
    ('71.0 ± 1.0', '70.0', '-')
    """
    if len(points) > 1:
        return f"{fmean(points):.1f} ± {stdev(points):.1f}"
    return f"{points[0]:.1f}" if points else "-"


def difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Of runs with the same seed, three or more: mean and 95 % interval; bold where it excludes 0.

    >>> difference({0: 71.0, 1: 72.0, 2: 73.0}, {0: 70.0, 1: 70.0, 2: 70.0})
    '+2.0 [-0.5, +4.5]'
    >>> difference({0: 71.0, 1: 72.0, 2: 73.0}, {0: 67.0, 1: 67.0, 2: 67.0})
    '**+5.0 [+2.5, +7.5]**'
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if ours is theirs or len(seeds) < 3:  # an interval from two would say nothing
        return "-"
    mean, low, high = paired_interval([ours[s] for s in seeds], [theirs[s] for s in seeds])
    text = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    return text if low <= 0 <= high else f"**{text}**"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """In Markdown."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def clean_table(runs: Runs) -> list[str]:
    """All arms without noise: scores, differences to the rivals, and how sure the students are."""
    rows = []
    against = {rival: runs.points(0.0, rival) for rival in RIVALS}
    plain = runs.points(0.0, "fine_tuning", "last")
    for arm in runs.names(0.0):
        points = against.get(arm) or runs.points(0.0, arm)
        last = plain if arm == "fine_tuning" else runs.points(0.0, arm, "last")
        failed = runs.failed.get((0.0, arm), 0)
        sure = [f"{runs.mean(0.0, arm, name):.2f}" for name in ("max_probability", "entropy")]
        rows.append([
            f"`{arm}`", f"{len(points)}" + (f" ({failed} failed)" if failed else ""),
            cell(list(points.values())), *(difference(points, other) for other in against.values()),
            cell(list(last.values())), difference(last, plain), *sure,
            f"{runs.mean(0.0, arm, 'ece'):.2f}",
        ])  # fmt: skip
    header = ["Arm", "Seeds", "Best epoch", *(f"minus `{rival}`" for rival in RIVALS)]
    return table([*header, "Last epoch", "minus `fine_tuning`", "max p", "entropy", "ECE"], rows)


def averaging_table(runs: Runs) -> list[str]:
    """The average of a run, the last weights of the same run, and those of one that decays."""
    average = runs.points(0.0, "averaging", "last")
    states = {
        "average of the second half": average,
        "last weights of the same runs, constant rate": runs.points(0.0, "averaging", "raw"),
        "last weights, linear decay (`fine_tuning`)": runs.points(0.0, "fine_tuning", "last"),
    }
    rows = [
        [name, cell(list(points.values())), difference(average, points)]
        for name, points in states.items()
    ]
    return table(["After the last epoch", "Mean ± deviation", "average minus this"], rows)


def noise_table(runs: Runs) -> list[str]:
    """Arms of the noise grid, and what each gains on the labels alone at the same rate."""
    wrong = [noise for noise in runs.noises if noise]
    names = [arm for arm in ARMS if any((noise, arm) in runs.arms for noise in wrong)]
    header = ["Arm", *(f"{noise:.0%} wrong" for noise in runs.noises)]
    header += [f"minus `{rival}` at {n:.0%}" for n in wrong for rival in RIVALS if rival in names]
    rows = []
    for arm in names:
        scores = [cell(list(runs.points(noise, arm).values())) for noise in runs.noises]
        gains = [
            "-" if arm == rival else difference(runs.points(n, arm), runs.points(n, rival))
            for n in wrong
            for rival in RIVALS
            if rival in names
        ]
        rows.append([f"`{arm}`", *scores, *gains])
    return table(header, rows) if wrong else []


def plot(runs: Runs, title: str, path: Path) -> None:
    """What each arm gains on fine-tuning, and accuracy over the rate of wrong labels."""
    from matplotlib.figure import Figure

    wrong = [noise for noise in runs.noises if noise]
    figure = Figure(figsize=(9.5 if wrong else 5.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if wrong else 1, squeeze=False)[0]
    arms = [arm for arm in runs.names(0.0) if arm != "fine_tuning"][::-1]
    for state, name, color, up in (
        ("", "best epoch", "#0072b2", 0.15),
        ("last", "last epoch", "#d55e00", -0.15),
    ):
        base = runs.points(0.0, "fine_tuning", state)
        for place, arm in enumerate(arms):
            points = runs.points(0.0, arm, state)
            seeds = sorted(points.keys() & base.keys())
            gaps = [points[seed] - base[seed] for seed in seeds]
            axes[0].plot(gaps, [place + up] * len(gaps), "o", color="#999999", markersize=3)
            if len(gaps) > 2:
                mean, low, high = paired_interval(gaps, [0.0] * len(gaps))
                spread = [[mean - low], [high - mean]]
                look = {"fmt": "s", "color": color, "capsize": 3, "markersize": 4}
                axes[0].errorbar([mean], [place + up], xerr=spread, **look)
        axes[0].plot([], [], "s", color=color, markersize=4, label=name)
    axes[0].legend(fontsize=7)
    axes[0].axvline(0, color="black", linewidth=0.8)
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].set(xlabel=f"{runs.metric} minus fine-tuning's, points", title="no wrong labels")
    colors = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7")
    names = [arm for arm in ARMS if any((noise, arm) in runs.arms for noise in wrong)]
    for color, arm in zip(colors, names, strict=False):
        at = [noise for noise in runs.noises if (noise, arm) in runs.arms]
        means = [fmean(runs.points(noise, arm).values()) for noise in at]
        axes[1].plot([100 * n for n in at], means, "o-", color=color, label=arm, markersize=4)
    if wrong:
        axes[1].set(xlabel="wrong labels, %", ylabel=f"{runs.metric}, %", title="mean over seeds")
        axes[1].legend(fontsize=7)
    for ax in axes:
        ax.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def about(runs: Runs, records: Sequence[Record]) -> list[str]:
    """Settings, teachers, rates, and what such a study can see at all."""
    options, reported = records[0]["options"], [r for r in runs.records if r["stage"] == "report"]
    facts = records[0]["about"]
    teachers: dict[float, list[float]] = {}
    for record in records:
        if record["stage"] == "teacher" and not record["failed"]:
            score = 100 * record["scores"][runs.metric]
            teachers.setdefault(record["noise"], []).append(score)
    taught = "; ".join(f"{cell(found)} at {n:.0%}" for n, found in sorted(teachers.items()))
    rates = sorted({r["rate"] for r in reported})
    tried = sorted({r["rate"] for r in runs.records if r["stage"] == "tune"})
    versions = ", ".join(
        f"{name} {facts[name]}" for name in ("torch", "lightning", "transformers", "lightning-kd")
    )
    seconds = fmean(r["seconds"]["cpu"] for r in reported if not r["failed"])
    spread = [list(runs.points(0.0, arm).values()) for arm in runs.names(0.0)]
    several = [points for points in spread if len(points) > 1]
    power: list[str] = []  # of one seed there is nothing to say
    if several:
        seeds, deviation = max(map(len, several)), fmean(map(stdev, several))
        effect = minimal_detectable_effect(seeds)
        power = [
            f"With {seeds} seeds a t-test of two arms that are not paired finds a difference of",
            f"{effect:.1f} deviations (here {effect * deviation:.1f} points) in 80 % of studies.",
        ]
    chosen = f"chosen from {tried} by validation" if tried else "as chosen for the reviews"
    return [
        f"{len(reported)} runs of {runs.cut}-layer students, {sum(runs.failed.values())} failed,",
        f"{seconds:.0f} processor seconds each. Settings: `{json.dumps(options)}`.",
        f"Learning rate, {chosen}: {', '.join(f'{rate:g}' for rate in rates)}.",
        f"Teachers' {runs.metric}, by their share of wrong labels: {taught}.",
        *power,
        f"Data `{facts['data_sha256'][:16]}`; {versions}.",
    ]


def section(name: str, path: Path, folder: Path) -> str:
    """The part of the page about one file."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    lines: list[str] = []
    for cut in sorted({r["cut"] for r in records if r["stage"] == "report"}):
        runs = Runs(records, cut)
        picture = folder / f"distillation_{name}_{cut}.png"
        plot(runs, f"{name}: {cut}-layer students", picture)
        lines += [f"### {name}, {cut}-layer students: {runs.metric}", "", *about(runs, records), ""]
        lines += [*clean_table(runs), "", f"![{name}, {cut} layers]({picture.name})", ""]
        if (0.0, "averaging") in runs.arms:
            lines += ["Averaging, nothing chosen by validation:", "", *averaging_table(runs), ""]
        if grid := noise_table(runs):
            lines += ["Wrong labels:", "", *grid, ""]
    return "\n".join(lines)


def rewritten(text: str, sections: dict[str, Callable[[], str]]) -> str:
    """The page with its parts between ``<!-- name -->`` and ``<!-- /name -->`` made anew."""
    for name, body in sections.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"the page has no {start} ... {end}")
        text = f"{before}{start}\n{body()}{end}{after}"
    return text


def main(args: list[str] | None = None) -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("runs", nargs="+", help="NAME=FILE.jsonl")
    options = parser.parse_args(args)
    sections: dict[str, Callable[[], str]] = {}
    for name, _, file in (run.partition("=") for run in options.runs):
        sections[name] = partial(section, name, Path(file), options.page.parent)
    options.page.write_text(rewritten(options.page.read_text(), sections))


if __name__ == "__main__":
    main()
