"""The statistics that every benchmark reports by."""

import argparse
import json

import pytest

from benchmarks import common
from benchmarks.common import Check, Spread, interleaved, ratio, report, round_order, start


def test_quartiles_are_those_of_a_hand_computed_sample() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert Spread(1.0, 0.5, 2.0).scaled(1000) == Spread(1000.0, 500.0, 2000.0)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_system_is_in_every_place_equally_often(count) -> None:
    rounds = [round_order(count, index) for index in range(2 * count)]
    assert all(sorted(order) == list(range(count)) for order in rounds)
    for place in range(count):
        assert sorted(order[place] for order in rounds) == sorted([*range(count)] * 2)


def test_every_system_follows_a_neighbour_as_often_as_it_precedes_it() -> None:
    rounds = [round_order(3, index) for index in range(6)]
    before = sum(order.index(0) < order.index(1) for order in rounds)
    assert before == 3


def test_a_ratio_is_taken_within_a_round() -> None:
    # The machine slows down tenfold in the second half: the medians' ratio would be off.
    assert ratio([2.0, 4.0, 20.0, 60.0], [1.0, 2.0, 10.0, 20.0]) == Spread.of([2.0, 2.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_warm_up_is_run_but_not_counted(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(common, "perf_counter", lambda: now[0])
    calls: list[str] = []

    def system(name: str, seconds: float) -> None:
        calls.append(name)
        now[0] += seconds if len(calls) > 2 else 100.0

    given = argparse.Namespace(rounds=3, warmup=1, clock="wall")
    seconds = interleaved({"a": lambda: system("a", 1), "b": lambda: system("b", 2)}, given)
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert calls.count("a") == calls.count("b") == 4


def test_the_last_line_is_json_with_the_headline_first(capsys) -> None:
    slow = Check("ours / theirs", Spread(1.2, 1.1, 1.3), bound=1.05)
    fast = Check("theirs / ours", Spread(2.0, 1.9, 2.1), bound=1.5, at_most=False)
    report("some", slow, fast, threads=2)
    out = capsys.readouterr().out
    assert "NOT met" in out
    record = json.loads(out.splitlines()[-1])
    assert (record["name"], record["ratio"], record["bound"], record["unit"]) == (
        "some",
        1.2,
        1.05,
        "x",
    )
    assert not record["met"]
    assert [check["met"] for check in record["also"]] == [True]
    assert record["threads"] == 2


def test_a_missing_asset_is_one_sentence_and_the_way_out(tmp_path) -> None:
    given = argparse.Namespace(student=str(tmp_path / "minilm"), threads=1, seed=0)
    with pytest.raises(SystemExit, match=r"no folder .*minilm: run `lightning-kd assets`"):
        start(given)
