"""Tables and plots of `soft_evidence.py` and `soft_decoding.py`, written into a page.

python benchmarks/soft_report.py docs/evidence/soft.md runs/soft_evidence
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

NAMES = {
    "base": "not trained",
    "sft": "SFT",
    "ict": "SFT+ICT",
    "extracted": "extracted, a run each",
    "soft": "SoFT",
}
STYLES = {  # colour-blind safe
    "base": ("#7f7f7f", ":"),
    "sft": ("#000000", "-"),
    "ict": ("#7f7f7f", "--"),
    "extracted": ("#d55e00", "-"),
    "soft": ("#0072b2", "-"),
}
METRICS = {"perplexity": "perplexity", "bleu": "BLEU", "rouge_l": "ROUGE-L"}
Scores = dict[str, dict[str, dict[int, dict[str, float]]]]  # arm, exit, seed, metric


def read(path: Path) -> tuple[Scores, list[dict[str, Any]]]:
    """Scores of a file's runs; the extracted models are one arm."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    scores: Scores = {}
    for record in records:
        arm = record["arm"].partition("_")[0]
        for exit_, values in record["scores"].items():
            scores.setdefault(arm, {}).setdefault(exit_, {})[record["seed"]] = values
    return scores, records


def ordered(scores: Scores) -> list[str]:
    """Arms that are there; SoFT's other rates last."""
    return [arm for arm in NAMES if arm in scores] + [arm for arm in scores if "@" in arm]


def name_of(arm: str) -> str:
    """An arm in words.

    >>> name_of("soft@0.0003"), name_of("ict")
    ('SoFT, rate 0.0003', 'SFT+ICT')
    """
    kind, _, rate = arm.partition("@")
    return f"{NAMES[kind]}, rate {rate}" if rate else NAMES[kind]


def cell(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, of several, their range.

    >>> cell([3.0, 4.0]), cell([2.0], 2), cell([]), cell([2e6])
    ('3.5 (3.0-4.0)', '2.00', '', '2.0e+06')
    """
    if not values:
        return ""
    digits = digits if max(values) < 1000 else 0
    if max(values) >= 1e6:
        return f"{fmean(values):.1e}"
    mean = f"{fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(scores: Scores, metric: str, exits: Sequence[str]) -> list[str]:
    """Arms by exit."""
    factor, digits = (100 if metric == "rouge_l" else 1), (2 if metric == "perplexity" else 1)
    lines = [f"| {METRICS[metric]} | {' | '.join(f'exit {n}' for n in exits)} |"]
    lines.append("|---" * (len(exits) + 1) + "|")
    for arm in ordered(scores):
        found = [scores[arm].get(n, {}).values() for n in exits]
        cells = [
            cell([factor * values[metric] for values in runs if metric in values], digits)
            for runs in found
        ]
        lines.append(f"| {name_of(arm)} | {' | '.join(cells)} |")
    return lines


def learning_check(scores: Scores, exits: Sequence[str]) -> list[str]:
    """The three statements of a learning check, in nats, averaged over seeds."""
    from math import log

    def loss(arm: str, exit_: str) -> float:
        return fmean(log(v["perplexity"]) for v in scores[arm][exit_].values())

    soft, sft = ([loss(arm, n) for n in exits] for arm in ("soft", "sft"))
    falls = all(low <= high * 1.02 for high, low in pairwise(soft))
    gaps = [b - a for a, b in zip(soft[:-1], sft[:-1], strict=True)]
    last = soft[-1] / sft[-1] - 1
    order = "in order" if falls else "not in order"
    each = "each more" if min(gaps) > 1 else "not each more"
    losses, below = ", ".join(f"{v:.3f}" for v in soft), ", ".join(f"{v:.2f}" for v in gaps)
    return [
        "",
        f"- SoFT's losses by exit: {losses} nats a token: {order}.",
        f"- Below SFT's at the same exit by {below} nats ({each} than 1).",
        f"- The last exit's loss: {soft[-1]:.3f}, SFT's {sft[-1]:.3f} ({100 * last:+.1f} %).",
    ]


def decoding_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every mode of every model; the range over seeds."""
    head = ("Model", "Mode", "blocks a token", "heads a token", "BLEU", "ROUGE-L", "tokens/s",
            "beside full depth", "equal texts", "acceptance")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for model in dict.fromkeys(run["model"] for run in runs):
        mine = [run["scores"] for run in runs if run["model"] == model]
        for place, names in enumerate(zip(*mine, strict=True)):
            found = [scores[name] for scores, name in zip(mine, names, strict=True)]
            full = [next(iter(scores.values())) for scores in mine]
            speed = [
                v["tokens_per_second"] / f["tokens_per_second"]
                for v, f in zip(found, full, strict=True)
            ]
            kinds = dict.fromkeys(names)
            drafted = names[0].startswith("speculative")
            cells = [
                NAMES[model],
                " / ".join(kinds),
                "" if drafted else cell([v["average_depth"] for v in found]),
                cell([v["heads_per_token"] for v in found], 2),
                cell([v["bleu"] for v in found]),
                cell([100 * v["rouge_l"] for v in found]),
                cell([v["tokens_per_second"] for v in found]),
                cell(speed, 2) if place else "1",
                cell([100 * v["equal_texts"] for v in found], 0) + " %",
                cell([v["acceptance"] for v in found], 2) if drafted else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def plot_exits(scores: Scores, exits: Sequence[str], path: Path) -> None:
    """Perplexity and BLEU over exits; bars of one deviation over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("perplexity", "bleu"), strict=True):
        for arm in ordered(scores):
            color, line = STYLES.get(arm, ("#0072b2", ":"))
            there = [n for n in exits if n in scores[arm]]
            runs = [[v[metric] for v in scores[arm][n].values()] for n in there]
            axes.errorbar(
                [int(n) for n in there],
                [fmean(values) for values in runs],
                [stdev(values) if len(values) > 1 else 0 for values in runs],
                color=color, linestyle=line, marker="o", markersize=4, capsize=2,
                label=name_of(arm) if metric == "bleu" else None,
            )  # fmt: skip
        axes.set(xlabel="blocks used", ylabel=f"{METRICS[metric]} on test")
        axes.set_xticks([int(n) for n in exits])
        axes.grid(alpha=0.3)
        if metric == "perplexity":
            axes.set_yscale("log")
    figure.legend(loc="outside upper center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=150)


def plot_decoding(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """BLEU over average depth: cut at a depth, and by confidence."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for model in dict.fromkeys(run["model"] for run in runs):
        mine = [run["scores"] for run in runs if run["model"] == model]
        for kind, line, label in (("depth", ":", "cut"), ("agreement", "-", "by confidence")):
            names = [n for n in mine[0] if n.startswith(kind)]
            if kind == "agreement":  # never to stop early is the full depth
                names.append(next(iter(mine[0])))
            points = sorted(
                (
                    fmean(s[n]["average_depth"] for s in mine),
                    fmean(s[n]["bleu"] for s in mine),
                )
                for n in names
            )
            axes.plot(
                *zip(*points, strict=True), color=STYLES[model][0], linestyle=line, marker="o",
                markersize=4, label=f"{NAMES[model]}, {label}",
            )  # fmt: skip
    axes.set(xlabel="blocks per token", ylabel="BLEU on test")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def sections(folder: Path, pictures: Path) -> dict[str, str]:
    """The generated parts of the page."""
    made = {}
    if (folder / "rates.jsonl").exists():
        scores, records = read_rates(folder / "rates.jsonl")
        made["rates"] = "\n".join(scores)
    scores_by_arm, records = read(folder / "report.jsonl")
    exits = sorted({n for arm in scores_by_arm.values() for n in arm}, key=int)
    plot_exits(scores_by_arm, exits, pictures / "soft_exits.png")
    seconds: dict[str, list[float]] = {}
    for record in records:
        seconds.setdefault(record["arm"], []).append(record["seconds"])
    times = ", ".join(f"{arm} {fmean(found):.0f} s" for arm, found in seconds.items())
    tables = [["", *table(scores_by_arm, metric, exits)] for metric in METRICS]
    said = (
        f"{len(records)} runs; settings: `{json.dumps(records[0]['settings'])}`. Seconds of a run "
        f"with its evaluation, on one thread of a shared machine: {times}."
    )
    made["exits"] = "\n".join([
        said,
        *(line for lines in tables for line in lines),
        *learning_check(scores_by_arm, exits),
        "", "![perplexity and BLEU over exits](soft_exits.png)",
    ])  # fmt: skip
    if (folder / "decoding.jsonl").exists():
        runs = [json.loads(line) for line in (folder / "decoding.jsonl").read_text().splitlines()]
        plot_decoding(runs, pictures / "soft_decoding.png")
        made["decoding"] = "\n".join(
            [*decoding_table(runs), "", "![BLEU over depth](soft_decoding.png)"]
        )
    return made


def read_rates(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Perplexities of every learning rate on what was held out."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    exits = list(records[0]["scores"])
    lines = [f"| Held out, perplexity | {' | '.join(f'exit {n}' for n in exits)} |"]
    lines.append("|---" * (len(exits) + 1) + "|")
    for record in records:
        cells = [cell([record["scores"][n]["perplexity"]], 2) for n in exits]
        lines.append(f"| {record['arm']} | {' | '.join(cells)} |")
    return lines, records


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("runs", type=Path, help="the study's folder")
    options = parser.parse_args()
    text = options.page.read_text()
    for name, body in sections(options.runs, options.page.parent).items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{options.page} has no {start} ... {end}")
        text = f"{before}{start}\n{body}\n{end}{after}"
    options.page.write_text(text)


if __name__ == "__main__":
    main()
