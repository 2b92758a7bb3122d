"""Tables and plots of `digits_capacity.py`'s runs, written into the evidence page between markers.

python benchmarks/digits_capacity_report.py docs/evidence/digits.md runs/digits_capacity/*.jsonl
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

METHODS = ("CE", "KD", "MSE", "Annealing-KD", "Continuation-KD")
PAIRS = (
    ("KD", "CE"),
    ("MSE", "KD"),
    ("Annealing-KD", "KD"),
    ("Annealing-KD", "MSE"),
    ("Continuation-KD", "KD"),
    ("Continuation-KD", "MSE"),
    ("Continuation-KD", "Annealing-KD"),
)
COLORS = {  # colour-blind safe
    "CE": "#000000",
    "KD": "#0072b2",
    "MSE": "#7f7f7f",
    "Annealing-KD": "#d55e00",
    "Continuation-KD": "#009e73",
}
Scores = dict[str, dict[str, dict[int, float]]]  # method -> teacher -> seed -> percent


def read(path: Path, score: str = "test") -> Scores:
    """Scores in percent; the labels alone have one run per seed, whatever the teacher."""
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if score in record:
            found = scores[record["method"]][record["teacher"]]
            found[record["seed"]] = 100 * record[score]
    for teacher in list(scores["teacher"] or scores["KD"]):
        scores["CE"][teacher] = scores["CE"]["-"]
    return scores


def spread(values: Sequence[float]) -> str:
    """Mean and deviation.

    >>> spread([90.0, 92.0])
    '91.0 ± 1.4'
    """
    if not values:
        return "-"
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def difference(first: dict[int, float], second: dict[int, float]) -> str:
    """Second from first, over the seeds that both have, with its standard error.

    >>> difference({0: 90.0, 1: 92.0}, {0: 89.0, 1: 89.0, 2: 70.0})
    '+2.0 ± 1.0'
    """
    gaps = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not gaps:
        return "-"
    error = f" ± {stdev(gaps) / math.sqrt(len(gaps)):.1f}" if len(gaps) > 1 else ""
    return f"{mean(gaps):+.1f}{error}"


def grid(title: str, teachers: Sequence[str], rows: dict[str, list[str]]) -> list[str]:
    """A table in Markdown with a column for each teacher."""
    lines = [f"| {title} | {' | '.join(teachers)} |", "|---" * (len(teachers) + 1) + "|"]
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())]


def section(path: Path, folder: Path) -> str:
    """The part of the page about one family."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    best, last = read(path), read(path, "last")
    memorized = read(path, "memorized")["teacher"]
    teachers = list(memorized)
    students = [record for record in records if record["method"] != "teacher"]
    seeds = {name: len(best[name][teachers[-1]]) for name in METHODS}
    picture = folder / f"digits_{path.stem}.png"
    plot(best, teachers, path.stem, picture)
    tables = {
        "teacher": {
            "right on its (wrong) training labels": memorized,
            "right on test": last["teacher"],
        },
        "student, best by validation": {name: best[name] for name in METHODS},
        "student, last weights": {name: last[name] for name in METHODS},
    }
    parts = [
        f"### {path.stem}: accuracy on the clean test set, mean ± deviation over seeds, percent",
        "",
        f"A student of {students[0]['weights']:,} weights; seeds per arm (last column): "
        + ", ".join(f"{name} {count}" for name, count in seeds.items())
        + f"; settings: `{json.dumps(records[0]['settings'])}`.",
    ]
    for title, rows in tables.items():
        cells = {n: [spread(list(f.get(t, {}).values())) for t in teachers]
                 for n, f in rows.items()}  # fmt: skip
        parts += ["", *grid(title, teachers, cells)]
    for title, scores in (("best by validation", best), ("last weights", last)):
        gaps = {
            f"{a} - {b}": [difference(scores[a][t], scores[b][t]) for t in teachers]
            for a, b in PAIRS
        }
        parts += ["", f"Paired differences in points ± standard error, {title}:", ""]
        parts += grid("", teachers, gaps)
    return "\n".join([*parts, "", f"![accuracy over the teacher]({picture.name})", ""])


def plot(scores: Scores, teachers: Sequence[str], family: str, path: Path) -> None:
    """Accuracy over the teacher's size, with bars of one deviation over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes: Any = figure.subplots()
    for place, method in enumerate(METHODS):
        runs = [list(scores[method][teacher].values()) for teacher in teachers]
        known = [k for k, values in enumerate(runs) if values]
        axes.errorbar(
            [k + 0.06 * (place - 2) for k in known],
            [mean(runs[k]) for k in known],
            [stdev(runs[k]) if len(runs[k]) > 1 else 0 for k in known],
            color=COLORS[method], marker="o", markersize=3, capsize=2, label=method,
            linestyle="--" if method == "CE" else "-",
        )  # fmt: skip
    axes.set_xticks(range(len(teachers)), teachers)
    axes.set(xlabel="teacher", ylabel="test accuracy, %", title=f"digits, {family}, noisy labels")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help=".jsonl files, named by their family")
    options = parser.parse_args()
    text = options.page.read_text()
    for path in options.runs:
        start, end = f"<!-- {path.stem} -->", f"<!-- /{path.stem} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{options.page} has no {start} ... {end}")
        text = f"{before}{start}\n{section(path, options.page.parent)}{end}{after}"
    options.page.write_text(text)


if __name__ == "__main__":
    main()
