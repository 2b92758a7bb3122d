"""The table and the plot of `qdylora_evidence.py`'s runs, written into a page between its markers.

python benchmarks/qdylora_report.py docs/evidence/qdylora.md runs/qdylora_evidence.jsonl
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Scores = dict[str, dict[str, dict[int, float]]]  # arm, rank ("-": none), seed


def styles(largest: str) -> dict[str, tuple[str, str]]:
    """Colour and line by arm, in the order of the table; colour-blind safe."""
    return {
        "QLoRA": ("#000000", "-"),
        f"QLoRA-{largest} SVD cut": ("#7f7f7f", "-"),
        f"QLoRA-{largest} cut alpha/R": ("#7f7f7f", "--"),
        f"QLoRA-{largest} cut alpha/b": ("#7f7f7f", ":"),
        "QDyLoRA alpha/b": ("#0072b2", "-"),
        "QDyLoRA alpha/R": ("#d55e00", "-"),
    }


def read(path: Path) -> tuple[Scores, list[dict[str, Any]]]:
    """Perplexities by arm, rank and seed; the records."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    found: Scores = {}
    for record in records:
        for arm, by_rank in record["scores"].items():
            for rank, value in by_rank.items():
                found.setdefault(arm, {}).setdefault(rank, {})[record["seed"]] = value
    return found, records


def cell(values: Mapping[int, float]) -> str:
    """Mean and deviation over seeds.

    >>> cell({0: 20.0, 1: 22.0}), cell({0: 1e6}), cell({})
    ('21.00 ± 1.41', '1.0e+06', '')
    """
    numbers = list(values.values())
    if not numbers:
        return ""
    mean = fmean(numbers)
    if mean >= 10_000:
        return f"{mean:.1e}"
    return f"{mean:.2f}" + (f" ± {stdev(numbers):.2f}" if len(numbers) > 1 else "")


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Mean difference of the losses in nats, of runs with the same seed; its range.

    >>> difference({0: 20.0}, {0: 10.0})
    '+0.693'
    """
    gaps = [math.log(ours[seed] / theirs[seed]) for seed in ours.keys() & theirs.keys()]
    text = f"{fmean(gaps):+.3f}" if gaps else ""
    return text + (f" ({min(gaps):+.3f} to {max(gaps):+.3f})" if len(gaps) > 1 else "")


def tables(scores: Scores) -> list[str]:
    """Perplexity by arm and rank, and nats of QDyLoRA beside each other arm."""
    ranks = sorted({r for arm in scores.values() for r in arm if r != "-"}, key=int)
    arms = [arm for arm in styles(ranks[-1]) if arm in scores]
    lines = [f"| Perplexity | {' | '.join(f'b={r}' for r in ranks)} |"]
    lines.append("|---" * (len(ranks) + 1) + "|")
    for arm in arms:
        cells = [cell(scores[arm].get(rank, {})) for rank in ranks]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    if "base" in scores:
        lines.append(f"| nothing trained | {cell(scores['base']['-'])} |" + " |" * (len(ranks) - 1))
    lines += ["", "Difference of the losses in nats a token; below 0, QDyLoRA is better:", ""]
    lines.append(f"| | {' | '.join(f'b={r}' for r in ranks)} |")
    lines.append("|---" * (len(ranks) + 1) + "|")
    for ours in (arm for arm in arms if arm.startswith("QDyLoRA")):
        for theirs in (arm for arm in arms if not arm.startswith("QDyLoRA")):
            cells = [
                difference(scores[ours].get(rank, {}), scores[theirs].get(rank, {}))
                for rank in ranks
            ]
            lines.append(f"| {ours} minus {theirs} | {' | '.join(cells)} |")
    return lines


def plot(scores: Scores, path: Path) -> None:
    """Perplexity over rank, bars of one deviation over seeds."""
    from matplotlib.figure import Figure

    ranks = sorted({r for arm in scores.values() for r in arm if r != "-"}, key=int)
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for arm, (color, line) in styles(ranks[-1]).items():
        there = [rank for rank in ranks if rank in scores.get(arm, {})]
        if not there:
            continue
        runs = [list(scores[arm][rank].values()) for rank in there]
        axes.errorbar(
            [int(rank) for rank in there],
            [fmean(values) for values in runs],
            [stdev(values) if len(values) > 1 else 0 for values in runs],
            color=color, linestyle=line, marker="o", markersize=4, capsize=2, label=arm,
        )  # fmt: skip
    if "base" in scores:
        axes.axhline(fmean(scores["base"]["-"].values()), color="#bbbbbb", label="nothing trained")
    axes.set(xlabel="rank used", ylabel="perplexity on dev", xscale="log")
    drawn = [v for runs in scores.values() for by_seed in runs.values() for v in by_seed.values()]
    if max(drawn) > 10 * min(drawn):  # else an axis of powers of ten has no number on it
        axes.set_yscale("log")
    axes.set_xticks([int(rank) for rank in ranks], ranks)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("runs", type=Path)
    options = parser.parse_args()
    scores, records = read(options.runs)
    picture = options.page.parent / "qdylora_ranks.png"
    plot(scores, picture)
    seconds: dict[str, list[float]] = {}
    for record in records:
        seconds.setdefault(record["arm"].rpartition("_")[0] or "base", []).append(record["seconds"])
    left_out = ("student", "data_dir", "threads", "seeds")
    settings = {k: v for k, v in records[0]["settings"].items() if k not in left_out}
    body = [
        f"{len(records)} runs; settings: `{json.dumps(settings)}`. Mean seconds of a run on one "
        "thread of a shared machine: "
        + ", ".join(f"{arm} {fmean(found):.0f} s" for arm, found in seconds.items()) + ".",
        "", *tables(scores), "", f"![perplexity over rank]({picture.name})",
    ]  # fmt: skip
    text = options.page.read_text()
    before, found, rest = text.partition("<!-- runs -->")
    _, closed, after = rest.partition("<!-- /runs -->")
    if not (found and closed):
        raise SystemExit(f"{options.page} has no <!-- runs --> ... <!-- /runs -->")
    lines = "\n".join(body)
    options.page.write_text(f"{before}<!-- runs -->\n{lines}\n<!-- /runs -->{after}")


if __name__ == "__main__":
    main()
