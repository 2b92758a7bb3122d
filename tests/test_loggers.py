"""metrics.csv is on disk at once, goes on after a kill, and holds no step twice."""

import csv

import torch

from lightning_kd.loggers import MetricsFile


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_row_is_on_disk_when_it_is_logged_and_new_columns_join(tmp_path) -> None:
    log = MetricsFile(tmp_path)
    log.log_metrics({"epoch": 0, "train/hard": 0.5}, 0)
    assert rows(tmp_path) == [{"epoch": "0", "step": "0", "train/hard": "0.5"}]
    log.log_metrics({"epoch": 0, "train/hard": 0.25}, 1)
    log.log_metrics({"epoch": 0, "val/f1": 1.0}, 1)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "epoch,step,train/hard,val/f1",
        "0,0,0.5,",
        "0,1,0.25,",
        "0,1,,1.0",
    ]


def test_a_resumed_run_keeps_the_rows_before_it_and_repeats_none(tmp_path) -> None:
    first = MetricsFile(tmp_path)
    for step in range(6):
        first.log_metrics({"epoch": 0, "a": step}, step)
    again = MetricsFile(tmp_path)
    assert len(rows(tmp_path)) == 6  # nothing is lost before there is something new
    again.log_metrics({"epoch": 0, "a": 40.0}, 4)
    again.log_metrics({"epoch": 0, "a": 50.0}, 5)
    assert [row["a"] for row in rows(tmp_path)] == ["0", "1", "2", "3", "40.0", "50.0"]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path) -> None:
    first = MetricsFile(tmp_path)
    for step in range(3):
        first.log_metrics({"epoch": 0, "a": 0.5}, step)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes() + b"0,1")  # was to be step 13
    MetricsFile(tmp_path).log_metrics({"epoch": 0, "a": 1.5}, 3)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]


def test_a_file_of_a_header_alone_goes_on(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,a\n")
    MetricsFile(tmp_path).log_metrics({"epoch": 0, "b": float(torch.tensor(2.0))}, 7)
    assert rows(tmp_path) == [{"epoch": "0", "step": "7", "b": "2.0"}]
