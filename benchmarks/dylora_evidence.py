"""Tables and plots of `dylora_study.py`'s runs, written into the evidence page between its markers.

python benchmarks/dylora_evidence.py docs/evidence/dylora.md sst2=runs/dylora_study/sst2.jsonl
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

COLORS = {  # colour-blind safe; one hue for each family
    "LoRA": ("#000000", "-"),
    "LoRA-8 SVD cut": ("#7f7f7f", "-"),
    "LoRA-8 cut alpha/R": ("#7f7f7f", "--"),
    "LoRA-8 cut alpha/b": ("#7f7f7f", ":"),
    "DyLoRA frozen alpha/b": ("#0072b2", "-"),
    "DyLoRA full alpha/b": ("#0072b2", "--"),
    "DyLoRA frozen alpha/R": ("#d55e00", "-"),
    "DyLoRA full alpha/R": ("#d55e00", "--"),
}
Scores = dict[str, dict[str, dict[int, float]]]  # arm -> size -> seed -> score


def read(path: Path) -> tuple[Scores, list[dict[str, Any]], str]:
    """Scores of all arms by size and seed, the records, and the metric (the task's first)."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    metric = ""
    for record in records:
        for arm, sizes in record["scores"].items():
            for size, values in sizes.items():
                metric = next(iter(values))
                scores[arm][size][record["seed"]] = 100 * values[metric]
    return scores, records, metric


def cell(values: Mapping[int, float]) -> str:
    """Mean and deviation over seeds."""
    numbers = list(values.values())
    if not numbers:
        return "-"
    return (
        f"{mean(numbers):.1f} ± {stdev(numbers):.1f}" if len(numbers) > 1 else f"{numbers[0]:.1f}"
    )


def table(scores: Scores) -> list[str]:
    """Arms by rank, then the arms that have none."""
    sizes = sorted({size for arm in scores.values() for size in arm if size != "-"}, key=int)
    lines = [f"| Arm | {' | '.join(f'b={s}' for s in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for arm in (a for a in COLORS if a in scores):
        cells = [cell(scores[arm].get(size, {})) for size in sizes]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += [
        f"| {arm} (no rank) | {cell(found['-'])} |" + " |" * (len(sizes) - 1)
        for arm, found in scores.items()
        if "-" in found
    ]
    return lines


def differences(scores: Scores, arm: str, other: str, sizes: Sequence[str]) -> str:
    """Paired difference of two arms, averaged over sizes, with its standard error over seeds."""
    seeds = sorted(set.intersection(*(set(scores[a][s]) for a in (arm, other) for s in sizes)))
    gaps = [mean(scores[arm][s][seed] - scores[other][s][seed] for s in sizes) for seed in seeds]
    error = f" ± {stdev(gaps) / math.sqrt(len(gaps)):.2f}" if len(gaps) > 1 else ""
    return f"{mean(gaps):+.2f}{error}"


def claims(scores: Scores) -> list[str]:
    """DyLoRA against each rival, in points."""
    rivals = [arm for arm in COLORS if arm in scores and not arm.startswith("DyLoRA")]
    ours = [arm for arm in COLORS if arm in scores and arm.startswith("DyLoRA")]
    lines = []
    for title, wanted in (("ranks 1 to 7", "1234567"), ("ranks 1 and 2", "12"), ("rank 8", "8")):
        present = [s for s in wanted if all(s in scores[arm] for arm in (*rivals, *ours))]
        if not present or not ours:
            continue
        lines += ["", f"Over {title}:", "", f"| | {' | '.join(rivals)} |"]
        lines.append("|---" * (len(rivals) + 1) + "|")
        for arm in ours:
            cells = [differences(scores, arm, rival, present) for rival in rivals]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def plot(scores: Scores, task: str, metric: str, path: Path) -> None:
    """Score over rank, one line an arm, bars of one deviation over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    drawn = [arm for arm in COLORS if arm in scores]
    for i, arm in enumerate(drawn):
        color, line = COLORS[arm]
        sizes = sorted((s for s in scores[arm] if s != "-"), key=int)
        runs = [list(scores[arm][size].values()) for size in sizes]
        axes.errorbar(
            [int(size) + 0.05 * (i - len(drawn) / 2) for size in sizes],
            [mean(values) for values in runs],
            [stdev(values) if len(values) > 1 else 0 for values in runs],
            color=color, linestyle=line, marker="o", markersize=3, capsize=2, label=arm,
        )  # fmt: skip
    axes.set(xlabel="rank used", ylabel=f"{metric} on dev, %", title=f"One run or eight: {task}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=150)


def section(task: str, path: Path, folder: Path) -> str:
    """The part of the page about one task."""
    scores, records, metric = read(path)
    picture = folder / f"dylora_{task}.png"
    plot(scores, task, metric, picture)
    settings = {k: v for k, v in records[0]["settings"].items() if k not in ("student", "task")}
    seconds = defaultdict(list)
    for record in records:
        seconds[record["arm"].partition("_")[0]].append(record["seconds"])
    times = ", ".join(f"{arm} {mean(found):.0f} s" for arm, found in seconds.items())
    return "\n".join(
        [
            f"### {task}: {metric}, mean ± deviation over seeds",
            "",
            f"{len(records)} runs; settings: `{json.dumps(settings)}`.",
            f"Mean seconds of a run with its evaluations, on a shared machine: {times}.",
            "",
            *table(scores),
            "",
            f"![{metric} over rank]({picture.name})",
            "",
            "Paired differences in points, row minus column, ± standard error over seeds.",
            *claims(scores),
            "",
        ]
    )


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("runs", nargs="+", help="TASK=FILE.jsonl")
    options = parser.parse_args()
    text = options.page.read_text()
    for task, _, file in (run.partition("=") for run in options.runs):
        start, end = f"<!-- {task} -->", f"<!-- /{task} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{options.page} has no {start} ... {end}")
        body = section(task, Path(file), options.page.parent)
        text = f"{before}{start}\n{body}{end}{after}"
    options.page.write_text(text)


if __name__ == "__main__":
    main()
