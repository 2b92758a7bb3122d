"""The papers' schedules against their printed tables, and out of YAML."""

import pytest
from jsonargparse import ArgumentParser

from lightning_kd.functional.annealing import smoothing_factor
from lightning_kd.paper_schedules import (
    AlgorithmOne,
    LinearPsi,
    ReleasedStairs,
    ScaledPsi,
    StepPsi,
    WhileBelowOne,
    epochs_below_one,
)
from lightning_kd.progress import Progress
from lightning_kd.schedules import Linear, Schedule, StepDown


def trace(schedule, epochs) -> list[float]:
    """One value per epoch of a training with seven batches each."""
    starts = [Progress(7 * e, 7 * epochs, e, epochs) for e in range(epochs)]
    return [schedule(progress) for progress in starts]


def stairs(start) -> StepDown:
    return StepDown(start, 1, every_epochs=None)


# annealing_kd.md, A3


@pytest.mark.parametrize("rule", [ReleasedStairs, stairs])
def test_a3_the_published_runs(rule) -> None:
    assert trace(rule(7), 14) == [7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1]
    assert trace(rule(10), 160) == [10 - e // 16 for e in range(160)]


def test_a3_epochs_that_the_temperatures_do_not_divide() -> None:
    expected = [10, 10, 10, 9, 9, 8, 8, 8, 7, 7, 6, 6, 6, 5, 5, 4, 4, 4, 3, 3, 2, 2, 2, 1, 1]
    assert trace(stairs(10), 25) == expected
    released = [smoothing_factor(t, 10) for t in trace(ReleasedStairs(10), 25)]
    assert released[-1] == max(released) == pytest.approx(1.3)
    assert smoothing_factor(trace(ReleasedStairs(14), 30)[-1], 14) == pytest.approx(15 / 14)


def test_released_stairs_are_the_loop_of_the_released_code() -> None:
    for epochs, warmest in [(25, 10), (30, 14), (14, 7), (7, 7), (9, 4)]:
        multiplier, expected = 1, []
        for epoch in range(epochs):
            multiplier += epoch > 0 and epoch % (epochs // warmest) == 0
            expected.append(warmest - multiplier + 1)
        assert trace(ReleasedStairs(warmest), epochs) == expected


@pytest.mark.parametrize("rule", [ReleasedStairs, AlgorithmOne])
def test_a3_fewer_epochs_than_stairs_are_refused(rule) -> None:
    with pytest.raises(ValueError, match="into 10 stairs and needs at least as many, got 5"):
        trace(rule(10), 5)
    with pytest.raises(ValueError, match="got None"):
        rule(10)(Progress(0, None, 0, None))


# continuation_kd.md


def test_c3_the_weight_of_the_labels_in_both_settings() -> None:
    cifar = trace(LinearPsi(150), 200)
    assert [cifar[i - 1] for i in (1, 75, 150, 200)] == [1 / 150, 0.5, 1, 1]
    glue = trace(LinearPsi(40, until=20), 30)
    assert [glue[i - 1] for i in (10, 20, 21, 30)] == [0.25, 0.5, 1, 1]


def test_the_scaled_weight_is_the_cifar_line_in_the_middle_of_its_epochs() -> None:
    got, cifar = trace(ScaledPsi(), 200), trace(LinearPsi(150), 200)
    assert got[:150] == pytest.approx([weight - 0.5 / 150 for weight in cifar[:150]])
    assert got[150:] == [1] * 50
    assert trace(ScaledPsi(), 1) == pytest.approx([2 / 3])
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs"):
        ScaledPsi()(Progress(0, None, 0, None))


def test_c4_the_factor_of_algorithm_one_with_its_end_at_one() -> None:
    glue = [smoothing_factor(t, 10) for t in trace(AlgorithmOne(10), 30)]
    assert [glue[i - 1] for i in (1, 2, 3)] == pytest.approx([0.1, 0.1, 0.2])
    assert glue[26:] == [1, 1, 1, 1]
    cifar = [smoothing_factor(t, 20) for t in trace(AlgorithmOne(20), 200)]
    assert [cifar[8], cifar[9]] == pytest.approx([0.05, 0.1])
    assert cifar[189:] == [1] * 11


def test_c4_even_stairs_have_equal_lengths() -> None:
    assert [trace(stairs(10), 30).count(t) for t in range(1, 11)] == [3] * 10


@pytest.mark.parametrize(
    ("psi", "warmest", "epochs", "largest"),
    [(LinearPsi(40, until=20), 10, 30, 0.7), (LinearPsi(150), 20, 200, 0.75)],
)
def test_c5_the_largest_factor_the_student_ever_sees(psi, warmest, epochs, largest) -> None:
    weights = trace(psi, epochs)

    def seen(rule) -> float:
        pairs = zip(trace(rule, epochs), weights, strict=True)
        return max(smoothing_factor(t, warmest) for t, weight in pairs if weight < 1)

    assert seen(AlgorithmOne(warmest)) == pytest.approx(largest)
    assert seen(WhileBelowOne(AlgorithmOne(warmest), psi)) == 1
    assert seen(WhileBelowOne(stairs(warmest), psi)) == 1


def test_annealing_over_the_first_part_is_annealing_kd_inside_it() -> None:
    assert trace(WhileBelowOne(stairs(5), StepPsi(10)), 14) == trace(stairs(5), 10) + [1] * 4


def test_epochs_below_one_are_counted_for_any_schedule() -> None:
    progress = Progress(3, 80, epoch=0, max_epochs=8)
    assert epochs_below_one(Linear(0, 1, until=0.75), progress) == 6
    assert epochs_below_one(StepPsi(0), progress) == 0
    assert epochs_below_one(StepPsi(50), progress) == 8
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs"):
        epochs_below_one(StepPsi(1), Progress(0, None, 0, None))


def test_with_no_epoch_below_one_a_compressed_schedule_is_the_schedule() -> None:
    assert trace(WhileBelowOne(stairs(2), StepPsi(0)), 4) == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReleasedStairs(0), "start must be at least 1, got 0"),
        (lambda: AlgorithmOne(0), "start must be at least 1, got 0"),
        (lambda: LinearPsi(0), "epochs must be at least 1, got 0"),
        (lambda: LinearPsi(10, until=11), "until must be from 0 to epochs=10, got 11"),
        (lambda: ScaledPsi(0.0), r"until must be in \(0, 1\], got 0"),
        (lambda: StepPsi(-1), "epochs must be at least 0, got -1"),
    ],
)
def test_nonsense_is_refused_with_the_value(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_weight_comes_out_of_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--psi", type=Schedule)
    config = {"class_path": "lightning_kd.paper_schedules.LinearPsi", "init_args": {"epochs": 40}}
    parsed = parser.parse_object({"psi": {**config, "init_args": {"epochs": 40, "until": 20}}})
    assert parser.instantiate(parsed).psi == LinearPsi(40, until=20)
