"""The curves of a training: every number at its step, phases in a row."""

import io
import math
from typing import Any

import pytest

from lightning_kd.report.curves import draw_curves, plot_curves, read_metrics

TEXT = """phase,epoch,step,temperature,train/annealed,train/grad_norm,val/accuracy
teacher,0,0,4.0,2.5,9.0,
teacher,0,1,,,,0.5
labels,0,0,,1.5,9.0,
labels,0,1,,nan,,0.75
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(TEXT)
    return path


def test_the_steps_of_a_phase_go_on_where_the_one_before_ended(path) -> None:
    metrics, phases = read_metrics(path)
    assert metrics == {
        "temperature": [(1, 4.0)],
        "train/annealed": [(1, 2.5), (3, 1.5)],  # what is not a number is left out
        "val/accuracy": [(2, 0.5), (4, 0.75)],
    }
    assert phases == [("teacher", 0), ("labels", 2)]


def points(axes: Any) -> list[list[float]]:
    found: list[list[float]] = axes.lines[0].get_xydata().tolist()
    return found


def test_there_is_a_panel_for_each_kind_with_all_points(path) -> None:
    metrics, phases = read_metrics(path)
    figure = draw_curves(metrics, phases, {"teacher": 0.9})
    losses, schedules, scores = figure.axes
    assert losses.get_ylabel() == "loss term"
    assert points(losses) == [[1, 2.5], [3, 1.5]]
    assert points(schedules) == [[1, 4.0]]
    assert points(scores) == [[2, 0.5], [4, 0.75]]
    assert [t.get_text() for t in scores.texts] == ["teacher"]
    assert [t.get_text().strip() for t in losses.texts] == ["teacher", "labels"]
    assert scores.get_xlabel() == "optimizer steps"


def test_the_first_phase_has_its_name_on_the_axes_and_equal_levels_share_theirs(path) -> None:
    metrics, phases = read_metrics(path)
    figure = draw_curves(metrics, phases, {"teacher": 0.5, "most frequent class": 0.5, "kd": 0.6})
    losses, _, scores = figure.axes
    first: Any = losses.texts[0]
    assert losses.get_xlim()[0] == 0 == first.xy[0]
    assert [t.get_text() for t in scores.texts] == ["teacher, most frequent class", "kd"]


def test_the_picture_is_a_png_and_the_size_drawn_each_step_is_no_curve(path, tmp_path) -> None:
    from matplotlib.image import imread

    picture = plot_curves(path)
    assert picture is not None
    assert math.prod(imread(io.BytesIO(picture)).shape) > 100_000
    only_ranks = tmp_path / "ranks.csv"
    only_ranks.write_text("epoch,step,train/rank\n0,0,3\n")
    assert plot_curves(only_ranks) is None
    assert plot_curves(tmp_path / "none.csv") is None
