"""The report of the capacity experiment, on records made up for it; and one real, tiny run."""

import json

import pytest

from benchmarks import digits_capacity, digits_capacity_report
from benchmarks.digits_capacity_report import METHODS, difference, read, section, spread
from tests import tiny


@pytest.fixture
def records(tmp_path):
    """Two seeds of two teachers; a method's place in the list is its accuracy."""
    rows = []
    for seed in (0, 1):
        rows.append({"method": "CE", "teacher": "-", "test": 0.5, "last": 0.4})
        for teacher in ("small", "large"):
            rows.append({"method": "teacher", "teacher": teacher, "last": 0.9, "memorized": 1.0})
            for place, method in enumerate(METHODS[1:], start=1):
                test = 0.5 + 0.1 * place + 0.01 * seed * (teacher == "large")
                rows.append({"method": method, "teacher": teacher, "test": test, "last": 0.3})
        for row in rows:
            row.setdefault("seed", seed)
            row |= {"settings": {"epochs": 2}, "weights": 7}
    path = tmp_path / "resnet.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_scores_are_found_by_method_teacher_and_seed(records) -> None:
    scores = read(records)
    assert scores["KD"]["small"] == pytest.approx({0: 60.0, 1: 60.0})
    assert scores["Annealing-KD"]["large"] == pytest.approx({0: 80.0, 1: 81.0})
    assert scores["CE"]["large"] == {0: 50.0, 1: 50.0}


def test_means_and_paired_differences_by_hand() -> None:
    assert spread([]) == "-"
    assert spread([80.0]) == "80.0"
    # gaps 1, 2, 6: mean 3, deviation sqrt(7), error sqrt(7/3)
    assert difference({0: 1.0, 1: 4.0, 2: 9.0}, {0: 0.0, 1: 2.0, 2: 3.0}) == "+3.0 ± 1.5"
    assert difference({0: 1.0}, {1: 1.0}) == "-"


def test_the_page_gets_tables_and_a_plot_between_its_markers(
    records, tmp_path, monkeypatch
) -> None:
    page = tmp_path / "digits.md"
    page.write_text("before\n<!-- resnet -->\nold\n<!-- /resnet -->\nafter\n")
    monkeypatch.setattr("sys.argv", ["report", str(page), str(records)])
    digits_capacity_report.main()
    text = page.read_text()
    assert text.startswith("before\n<!-- resnet -->\n### resnet")
    assert text.endswith("<!-- /resnet -->\nafter\n")
    assert "| Annealing-KD | 80.0 ± 0.0 | 80.5 ± 0.7 |" in text
    assert "| Annealing-KD - KD | +20.0 ± 0.0 | +20.0 ± 0.0 |" in text
    assert (tmp_path / "digits_resnet.png").read_bytes().startswith(b"\x89PNG")
    assert "old" not in text
    assert section(records, tmp_path) in text


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_run_is_recorded_once_and_other_settings_are_refused(tmp_path, monkeypatch) -> None:
    folder = tiny.digits_folder(tmp_path / "digits")
    words = ["--family", "mlp", "--data_dir", str(folder), "--output", str(tmp_path / "mlp.jsonl")]
    words += ["--epochs", "2", "--teacher_epochs", "1", "--max_temperature", "1", "--seeds", "1"]
    teachers = dict(list(digits_capacity.TEACHERS["mlp"].items())[:1])
    monkeypatch.setattr(digits_capacity, "TEACHERS", {"mlp": teachers})
    for _ in range(2):
        digits_capacity.Experiment(digits_capacity.parse(words)).run()
    lines = [json.loads(line) for line in (tmp_path / "mlp.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["CE", "teacher", *METHODS[1:]]
    assert {line["weights"] for line in lines if line["method"] != "teacher"} == {460}
    with pytest.raises(SystemExit, match="give another --output"):
        digits_capacity.Experiment(digits_capacity.parse([*words, "--noise", "0.3"]))
