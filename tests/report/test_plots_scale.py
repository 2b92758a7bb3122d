"""Axes of a plot over sizes."""

import pytest

from lightning_kd.report import Result
from lightning_kd.report.plots import draw_sizes
from tests.report.test_writing import make


@pytest.mark.parametrize(
    ("metric", "worst", "scale"),
    [
        ("perplexity", 4339.0, "log"),
        ("perplexity", 300.0, "linear"),
        ("accuracy", 4339.0, "linear"),
    ],
)
def test_perplexities_far_apart_have_a_logarithmic_axis(metric, worst, scale):
    values = {10: worst, 20: 200.0, 30: 95.0}
    results = [Result(n, "validation", metric, value, 5) for n, value in values.items()]
    figure = draw_sizes(make("SoFT", *results, size_name="layer"))
    (axes,) = figure.axes
    assert axes.get_yscale() == scale
    if scale == "log":
        figure.canvas.draw()
        low, high = axes.get_ylim()
        shown = [
            label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high
        ]
        assert {"100", "1,000"} <= {label.get_text() for label in shown}
        assert low < min(values.values())
        assert max(values.values()) < high
