"""What a person sees: the files of a report, the terminal table and the comparison of runs."""

import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from rich.console import Console

from lightning_kd.report import Result, Summary, compare, show, write_report
from lightning_kd.report.plots import draw_sizes
from lightning_kd.report.tables import result_grids

ACCURACIES = {1: 0.7134, 2: 0.7412, 3: 0.7523, 4: 0.7611}


def make(method: str = "DyLoRA", *results: Result, **changes: object) -> Summary:
    summary = Summary(method, "glue", "sst2", "org/encoder", 3, 12.34, {"cpus": 2}, "ab" * 32, ())
    return dataclasses.replace(summary, results=results, **changes)  # type: ignore[arg-type]


def dylora(**changes: object) -> Summary:
    results = [
        Result(rank, "validation", "accuracy", value, 1024 * rank, 1.5 * rank, 0.0125)
        for rank, value in ACCURACIES.items()
    ]
    return make("DyLoRA", *results, **changes)


def run(folder: Path, summary: Summary) -> Path:
    write_report(folder, summary)
    return folder


def printed(
    summary: Summary, run_dir: Path, chosen: list[int], exports: Mapping[int | None, Path]
) -> str:
    console = Console(file=io.StringIO(), width=80)
    show(summary, run_dir, chosen, exports, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def page(run_dir: Path) -> str:
    return (run_dir / "report" / "report.md").read_text()


@pytest.mark.parametrize("name", ["rank", "layer"])
def test_a_run_with_sizes_leaves_three_whole_files(tmp_path, name):
    write_report(tmp_path, dylora(size_name=name), chosen=[3, 4])
    files = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert files == sorted([f"{name}s.png", "report.md", "summary.json"])
    height, width, _ = image.imread(tmp_path / "report" / f"{name}s.png").shape
    assert 900 < width < 1200  # about 6.8 inches at 150 dots
    assert 600 < height < 900
    assert f"({name}s.png)" in page(tmp_path)


def test_a_run_without_sizes_has_no_plot(tmp_path):
    summary = make("FineTuning", Result(None, "validation", "accuracy", 0.9123, 22_713_986))
    write_report(tmp_path, summary)
    files = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert files == ["report.md", "summary.json"]
    assert "| accuracy | 0.9123 |" in page(tmp_path)
    assert "22,713,986" in page(tmp_path)
    assert "![" not in page(tmp_path)


def test_the_page_has_the_numbers_the_rule_and_the_way_to_repeat_them(tmp_path):
    exports = {3: tmp_path / "export" / "rank_3", 4: tmp_path / "export" / "rank_4"}
    write_report(tmp_path, dylora(), chosen=[3, 4], exports=exports, baseline=0.5432)
    text = page(tmp_path)
    assert "| 1 | 1,024 | 0.7134 ± 0.0125 | 1.5 |" in text
    assert "| * 4 | 4,096 | 0.7611 ± 0.0125 | 6.0 |" in text
    assert "Rank 4 is best by accuracy on validation; rank 3 is the smallest within" in text
    assert "- rank 3: [rank_3](../export/rank_3)" in text
    assert "most frequent class gives accuracy 0.5432" in text
    for fact in ("| seed | 3 |", "| wall time | 12.3 seconds |", "ab" * 32, "| cpus | 2 |"):
        assert fact in text
    assert str(tmp_path) not in text


def test_references_are_listed_with_what_sets_them_apart(tmp_path):
    lora = run(tmp_path / "lora", make("LoRA", Result(4, "validation", "accuracy", 0.7777, 4096)))
    other = make("LoRA", Result(None, "validation", "accuracy", 0.6, 5), data_sha256="cd" * 32)
    old = run(tmp_path / "old", dataclasses.replace(other, model="org/small"))
    write_report(tmp_path / "run", dylora(), references=[lora, old / "report" / "summary.json"])
    text = page(tmp_path / "run")
    assert "| [LoRA](../../lora) | validation | accuracy | 3 | 4 | 4,096 | 0.7777 |" in text
    assert "[LoRA (org/small), other data](../../old/report/summary.json)" in text


def test_a_bad_reference_is_an_error_and_loses_no_number(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no summary at .*missing"):
        write_report(tmp_path, dylora(), references=[tmp_path / "missing"])
    assert Summary.read(tmp_path).results[0].value == ACCURACIES[1]
    mrpc = run(tmp_path / "mrpc", dylora(task="mrpc"))
    with pytest.raises(ValueError, match=r"is of glue/mrpc, this run of glue/sst2; leave it out"):
        write_report(tmp_path, dylora(), references=[mrpc])


def test_a_file_is_replaced_in_one_step(tmp_path):
    write_report(tmp_path, dylora())
    files = sorted((tmp_path / "report").iterdir())
    with files[-1].open() as opened:  # a reader of the old file
        before = [file.stat().st_ino for file in files]
        write_report(tmp_path, dylora(seed=9))
        assert '"seed": 3' in opened.read()
    assert all(file.stat().st_ino != old for file, old in zip(files, before, strict=True))


def test_a_failing_write_keeps_the_old_file_and_leaves_no_scrap(tmp_path, monkeypatch):
    write_report(tmp_path, dylora())

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, dylora(seed=9))
    assert Summary.read(tmp_path).seed == 3
    assert len(list((tmp_path / "report").iterdir())) == 3


def test_the_terminal_table_fits_80_columns_and_marks_the_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "x"
    results = [
        Result(r, s, m, 0.5, 10_000_000 * r, 100.0, 0.01)
        for r in (1, 2)
        for s in ("validation", "validation_mismatched")
        for m in ("accuracy", "f1")
    ]
    summary = make("DyLoRA", *results)
    write_report(folder, summary, chosen=[1])
    text = printed(summary, folder, [1], {1: folder / "export" / "rank_1"})
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert text.count("* 1 ") == 2  # in the table of each split
    assert text.count("0.5000 ± 0.0100   0.5000 ± 0.0100     100.0") == 4
    assert "rank   trainable parameters" in text
    assert "report       runs/x/report/report.md" in text
    assert "plot         runs/x/report/ranks.png" in text
    assert "rank 1       runs/x/export/rank_1" in text
    assert "checkpoints" not in text  # this run has none


def test_the_chosen_are_bold_on_a_terminal():
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    console.print(*result_grids(dylora(), [2]))
    assert isinstance(console.file, io.StringIO)
    bold = [line for line in console.file.getvalue().splitlines() if "\x1b[1m0." in line]
    assert len(bold) == 1
    assert "0.7412" in bold[0]


def test_the_terminal_shows_paths_in_one_piece_and_text_as_it_is(tmp_path):
    folder = tmp_path / ("[bold]" + "long" * 30)
    summary = make("FineTuning", Result(None, "validation", "accuracy", math.nan, 7))
    text = printed(summary, folder, [], {None: folder / "export"})
    assert str(folder / "export") in text
    assert "not finite" in text
    assert "split validation" in text


def test_a_run_that_diverged_everywhere_still_has_a_report(tmp_path):
    summary = make("DyLoRA", *(Result(r, "validation", "accuracy", math.nan, 5) for r in (1, 2)))
    write_report(tmp_path, summary)
    assert "No rank was chosen." in page(tmp_path)
    assert (tmp_path / "report" / "ranks.png").stat().st_size > 0
    (axes,) = draw_sizes(summary).axes
    assert [text.get_text() for text in axes.texts] == ["no finite value"]


def test_the_plot_leaves_out_a_size_that_diverged():
    values = {1: 0.5, 2: math.inf, 3: 0.6}
    results = [Result(r, "validation", "accuracy", v, 5) for r, v in values.items()]
    (axes,) = draw_sizes(make("DyLoRA", *results)).axes
    assert list(np.asarray(axes.lines[0].get_xdata())) == [1, 3]


def test_the_plot_shows_every_number_at_its_size(tmp_path):
    references = [
        make("LoRA", Result(8, "validation", "accuracy", 0.9, 5)),
        make("FineTuning", Result(None, "validation", "accuracy", 0.95, 5)),
        make("FineTuning", Result(None, "validation", "accuracy", 0.97, 5)),
    ]
    figure = draw_sizes(dylora(), references, chosen=[2], baseline=0.6)
    (axes,) = figure.axes
    lines = {
        tuple(np.asarray(line.get_ydata())): np.asarray(line.get_xdata()) for line in axes.lines
    }
    assert list(lines[tuple(ACCURACIES.values())]) == list(ACCURACIES)
    assert {(0.9,), (0.96, 0.96), (0.7412,), (0.6, 0.6)} < set(lines)
    assert lines[(0.9,)] == pytest.approx(8, abs=0.2)
    low, high = axes.get_ylim()
    assert low < 0.6
    assert high > 0.96
    left, right = axes.get_xlim()
    assert left < 1
    assert right > 8
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "DyLoRA, ± 1 standard error",
        "LoRA",
        "FineTuning",
        "chosen rank",
        "majority class (0.6000)",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rank", "accuracy (fraction correct)")


def test_a_far_baseline_is_told_and_does_not_flatten_the_curve():
    figure = draw_sizes(dylora(), baseline=0.1)
    assert figure.axes[0].get_ylim()[0] > 0.6
    assert "majority class (0.1000), below the axis" in {
        text.get_text() for text in figure.legends[0].get_texts()
    }


def test_each_metric_has_a_panel_and_each_split_a_line():
    results = [
        Result(r, split, metric, 0.5, 5)
        for r in (1, 2, 4, 8)
        for split in ("validation", "validation_mismatched")
        for metric in ("accuracy", "f1")
    ]
    figure = draw_sizes(make("DyLoRA", *results), baseline=0.5)
    assert [len(axes.lines) for axes in figure.axes] == [3, 2]  # the baseline is an accuracy
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
    assert len({line.get_linestyle() for line in figure.axes[1].lines}) == 2
    assert len(figure.legends[0].get_texts()) == 3


def test_compare_gives_mean_and_deviation_over_runs(tmp_path):
    folders = [
        run(
            tmp_path / str(seed),
            make("LoRA", Result(4, "validation", "accuracy", value, 9), seed=seed),
        )
        for seed, value in enumerate((0.70, 0.72, 0.77))
    ]
    tuned = make("FineTuning", Result(None, "validation", "accuracy", math.nan, 9))
    folders += [run(tmp_path / "tuned", tuned), folders[0]]  # the same run twice counts once
    # variance: ((-0.03)**2 + (-0.01)**2 + 0.04**2) / 2 = 0.0013
    text = str(compare(folders))
    assert "| LoRA | 4 | 0.7300 ± 0.0361 | 3 |" in text
    assert "| FineTuning | - | not finite | 1 |" in text
    assert "task glue/sst2" in text.splitlines()[0]


def test_compare_never_averages_over_different_data(tmp_path):
    results = [Result(4, "validation", "accuracy", 0.5, 9)]
    folders = [
        run(tmp_path / data, make("LoRA", *results, data_sha256=data * 32)) for data in ("ab", "cd")
    ]
    text = str(compare(folders))
    assert "| LoRA | abababab | 4 | 0.5000 | 1 |" in text
    assert "| LoRA | cdcdcdcd | 4 | 0.5000 | 1 |" in text


def test_compare_prints_as_a_table(tmp_path):
    console = Console(file=io.StringIO(), width=80)
    console.print(compare([run(tmp_path, dylora())]))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert sum("DyLoRA" in line for line in lines) == 4
    assert max(map(len, lines)) <= 80


def test_compare_of_nothing_says_what_it_needs():
    with pytest.raises(ValueError, match="at least one run"):
        compare([])
