"""What the runs of the label regularization study say; of several tasks together, if given.

    python benchmarks/label_regularization_report.py runs/label_regularization/*.jsonl --margin 1

Per task and initial state: mean, deviation and median of every arm in points (hundredths of the
metric), failures, tests against plain fine-tuning (all two-sided, runs paired by seed), the
equivalence test at the margin, calibration and confidence. Holm's correction is over all arms and
tasks of one initial state. Failed runs are counted, not dropped in silence; runs that answer one
class only are counted as collapsed and stay in the means.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_kd.comparison import Comparison, compare
from lightning_kd.statistics import bootstrap_interval, holm, minimal_detectable_effect
from lightning_kd.tasks import task_named

Record = dict[str, Any]
BASELINE = "none"


class Runs:
    """The reported runs of one arm, by seed."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = {record["seed"]: record for record in records}
        options = records[0]["options"]  # a study of no benchmark says what it measures
        known = task_named(options["task"]) if "metric" not in options else None
        self.metric = known.monitor if known else options["metric"]
        self.num_classes = known.num_labels if known else options["classes"]
        self.finished = {s: r for s, r in self.records.items() if r["failed"] is None}

    @property
    def points(self) -> dict[int, float]:
        """Seed to the task's metric in points; a correlation of constant answers counts as 0."""
        found = {seed: r["scores"][self.metric] for seed, r in self.finished.items()}
        return {seed: 0.0 if math.isnan(v) else 100 * v for seed, v in found.items()}

    @property
    def failures(self) -> int:
        """Runs without a number."""
        return len(self.records) - len(self.finished)

    @property
    def collapsed(self) -> int:
        """Runs that gave every example the same answer."""
        return sum(r["scores"].get("answered_classes", 2) == 1 for r in self.finished.values())

    def mean(self, name: str) -> float:
        """Of another score; NaN where it was not measured."""
        values = [r["scores"][name] for r in self.finished.values() if name in r["scores"]]
        return statistics.fmean(values) if values else math.nan

    def against(self, baseline: "Runs", margin: float) -> Comparison | None:
        """Tests over the seeds that both finished; None with fewer than two."""
        ours, theirs = self.points, baseline.points
        seeds = sorted(ours.keys() & theirs.keys())
        if len(seeds) < 2:
            return None
        return compare([theirs[s] for s in seeds], [ours[s] for s in seeds], margin)


Arms = dict[str, Runs]


def collect(records: Sequence[Record]) -> dict[tuple[str, str], Arms]:
    """The reported runs by (initial state, task) and arm, in the order they were made."""
    found: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        if record["stage"] == "report":
            place = found.setdefault((record["init"], record["options"]["task"]), {})
            place.setdefault(record["arm"], []).append(record)
    return {place: {arm: Runs(runs) for arm, runs in arms.items()} for place, arms in found.items()}


def comparisons(arms: Arms, margin: float) -> dict[str, Comparison]:
    """Every arm against fine-tuning, where there are runs enough."""
    if BASELINE not in arms:
        return {}
    made = {a: r.against(arms[BASELINE], margin) for a, r in arms.items() if a != BASELINE}
    return {arm: comparison for arm, comparison in made.items() if comparison is not None}


def print_report(records: Sequence[Record], margin: float) -> None:
    """Tables, then what they come to."""
    places = collect(records)
    for init in dict.fromkeys(init for init, _ in places):
        tasks = {task: arms for (i, task), arms in places.items() if i == init}
        tests = {task: comparisons(arms, margin) for task, arms in tasks.items()}
        keys = [(task, arm) for task, made in tests.items() for arm in made]
        corrected = dict(zip(keys, holm([tests[t][a].welch for t, a in keys]), strict=True))
        for task, arms in tasks.items():
            _print_scores(init, task, arms)
            _print_tests(task, arms, tests[task], corrected, margin)
        if len(tasks) > 1:
            _print_average(init, tasks)
    _print_gains(places)


def _print_scores(init: str, task: str, arms: Arms) -> None:
    metric = next(iter(arms.values())).metric
    print(f"\n{task}, {init} student, {metric} in points")
    print(f"{'arm':16} runs fail coll    mean      sd  median |    ECE  max p  entropy")
    for arm, runs in arms.items():
        points = list(runs.points.values())
        deviation = statistics.stdev(points) if len(points) > 1 else math.nan
        mean, median = (
            f(points) if points else math.nan for f in (statistics.fmean, statistics.median)
        )
        sure = [runs.mean(name) for name in ("ece", "max_probability", "entropy")]
        print(
            f"{arm:16} {len(runs.records):4} {runs.failures:4} {runs.collapsed:4} {mean:7.2f} "
            f"{deviation:7.2f} {median:7.2f} | {sure[0]:6.3f} {sure[1]:6.3f} {sure[2]:8.3f}"
        )


def _print_tests(
    task: str,
    arms: Arms,
    tests: dict[str, Comparison],
    corrected: dict[tuple[str, str], float],
    margin: float,
) -> None:
    if not tests:
        print("no tests: they need fine-tuning (arm none), another arm and two seeds of both")
        return
    print(
        f"{'against none':16}    diff   Welch    Holm  paired sign-flip  permute "
        f"equiv({margin:g})  verdict"
    )
    for arm, t in tests.items():
        paired = "undef." if t.paired is None else f"{t.paired:6.4f}"
        print(
            f"{arm:16} {t.difference:+7.2f}  {t.welch:6.4f}  {corrected[task, arm]:6.4f}  {paired}"
            f"    {t.sign_flip:6.4f}   {t.permutation:6.4f}    {t.equivalence:6.4f}  {t.verdict()}"
        )
    points = list(arms[BASELINE].points.values())
    effect = minimal_detectable_effect(len(points))
    print(
        f"with {len(points)} runs an arm, a difference of {effect:.2f} deviations (here "
        f"{effect * statistics.stdev(points):.2f} points) is found in 80 % of studies"
    )
    if "label_smoothing" in arms:
        _print_confidence(arms)
    if {"label_smoothing", "tf_reg"} <= arms.keys() and arms[BASELINE].num_classes == 2:
        print("two classes: label_smoothing and tf_reg are one family here, not two findings")


def _print_confidence(arms: Arms) -> None:
    ours, theirs = arms["label_smoothing"].finished, arms[BASELINE].finished
    seeds = ours.keys() & theirs.keys()
    name = "max_probability"
    lower = sum(ours[s]["scores"][name] < theirs[s]["scores"][name] for s in seeds)
    print(f"label_smoothing lowers the mean largest probability in {lower} of {len(seeds)} seeds")


def _print_average(init: str, tasks: dict[str, Arms]) -> None:
    print(f"\naverage of {', '.join(tasks)}, {init} student, 95 % bootstrap interval over runs")
    for arm in next(iter(tasks.values())):
        groups = [list(arms[arm].points.values()) for arms in tasks.values() if arm in arms]
        if len(groups) == len(tasks) and all(groups):
            low, high = bootstrap_interval(groups)
            mean = statistics.fmean(statistics.fmean(group) for group in groups)
            print(f"{arm:16} {mean:7.2f}  [{low:.2f}, {high:.2f}]")


def _print_gains(places: dict[tuple[str, str], Arms]) -> None:
    """What pre-training gives beside what the best regularizer gives."""
    for task in dict.fromkeys(task for _, task in places):
        means = {
            (init, arm): statistics.fmean(runs.points.values())
            for (init, t), arms in places.items()
            for arm, runs in arms.items()
            if t == task and runs.points
        }
        plain = {init: mean for (init, arm), mean in means.items() if arm == BASELINE}
        print(f"\n{task}: points gained")
        if {"pretrained", "random"} <= plain.keys():
            gain = plain["pretrained"] - plain["random"]
            print(f"  by pre-training, of plain fine-tuning: {gain:+.2f}")
        for init, base in plain.items():
            others = [(m - base, a) for (i, a), m in means.items() if i == init and a != BASELINE]
            for gain, arm in sorted(others)[-1:]:
                print(f"  by the best label regularization, {init} student: {gain:+.2f} ({arm})")


def main() -> None:
    """Report on finished studies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--margin", type=float, default=1.0, help="points that would matter")
    options = parser.parse_args()
    lines = [line for file in options.files for line in file.read_text().splitlines()]
    print_report([json.loads(line) for line in lines], options.margin)


if __name__ == "__main__":
    main()
