"""Schedules: closed forms, the ends, refused arguments, and their way out of a YAML file."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lightning_kd.progress import Progress
from lightning_kd.schedules import Constant, Cosine, Linear, Schedule, StepDown

values = st.floats(-1e6, 1e6, allow_subnormal=False)


def at(step, of=10) -> Progress:
    return Progress(step, of, epoch=0, max_epochs=1)


def in_epoch(epoch, of=None) -> Progress:
    return Progress(step=0, max_steps=None, epoch=epoch, max_epochs=of)


def test_constant_is_constant_even_without_a_known_end() -> None:
    assert [Constant(3)(in_epoch(e)) for e in range(3)] == [3.0] * 3


def test_linear_is_the_straight_line() -> None:
    got = [Linear(2.0, 7.0)(at(step)) for step in range(11)]
    assert got == pytest.approx([2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0])


def test_linear_arrives_at_until_and_stays() -> None:
    got = [Linear(1.0, 0.0, until=0.4)(at(step)) for step in range(11)]
    assert got == pytest.approx([1.0, 0.75, 0.5, 0.25] + [0.0] * 7)


def test_cosine_at_the_angles_everybody_knows() -> None:
    cosine = Cosine(start=3.0, end=1.0)
    thirds = [cosine(at(step, of=6)) for step in range(7)]
    half_root_3 = math.sqrt(3) / 2
    assert thirds == pytest.approx([3, 2 + half_root_3, 2.5, 2, 1.5, 2 - half_root_3, 1])


@given(start=values, end=values)
def test_linear_and_cosine_are_exact_at_both_ends_and_never_outside(start, end) -> None:
    for schedule in (Linear(start, end), Cosine(start, end)):
        assert schedule(at(0)) == start
        assert schedule(at(10)) == end
        slack = 1e-9 * max(abs(start), abs(end))
        inside = [schedule(at(step)) for step in range(1, 10)]
        assert all(min(start, end) - slack <= v <= max(start, end) + slack for v in inside)


def test_step_down_takes_a_step_an_epoch_and_stays_at_the_end() -> None:
    got = [StepDown(10, 1)(in_epoch(e)) for e in range(12)]
    assert got == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 1]


def test_step_down_with_longer_stairs_and_a_step_that_does_not_divide() -> None:
    got = [StepDown(5, 1.5, step=2, every_epochs=2)(in_epoch(e)) for e in range(7)]
    assert got == [5, 5, 3, 3, 1.5, 1.5, 1.5]


def test_step_down_does_not_move_within_an_epoch() -> None:
    down = StepDown(10, 1)
    assert {down(Progress(s, 100, epoch=3, max_epochs=10)) for s in range(30, 40)} == {7.0}


# annealing_kd.md, 2.4: n1 = 14, T_max = 7 and n1 = 160, T_max = 10 of the published runs
@pytest.mark.parametrize(("epochs", "warmest"), [(14, 7), (160, 10), (10, 10), (25, 10), (30, 14)])
def test_even_stairs_are_the_temperature_rule_of_annealing_kd(epochs, warmest) -> None:
    even = StepDown(warmest, 1, every_epochs=None)
    got = [even(in_epoch(e, of=epochs)) for e in range(epochs)]
    assert got == [warmest - min(warmest - 1, e * warmest // epochs) for e in range(epochs)]
    assert got[0] == warmest
    assert got[-1] == 1
    if epochs % warmest == 0:  # the authors' rule, which overshoots otherwise
        counter, official = 1, []
        for e in range(epochs):
            counter += e > 0 and e % (epochs // warmest) == 0
            official.append(warmest - counter + 1)
        assert got == official


def test_even_stairs_need_a_length() -> None:
    with pytest.raises(ValueError, match=r"needs its length; set trainer\.max_epochs"):
        StepDown(3, 1, every_epochs=None)(in_epoch(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(math.nan), "value must be a finite number, got nan"),
        (lambda: Linear(math.inf, 0), "start must be a finite number, got inf"),
        (lambda: Linear(1, 0, until=0), r"until is a fraction .* in \(0, 1\], got 0"),
        (lambda: Linear(1, 0, until=1.5), r"in \(0, 1\], got 1.5"),
        (lambda: Linear(1, 0, until=math.nan), r"in \(0, 1\], got nan"),
        (lambda: StepDown(1, 10), "end=10 is above start=1; use Linear"),
        (lambda: StepDown(10, 1, step=0), "step must be above 0, got 0"),
        (lambda: StepDown(10, 1, step=-1), "step must be above 0, got -1"),
        (lambda: StepDown(10, 1, every_epochs=0), "every_epochs must be at least 1"),
        (lambda: Cosine(0, -math.inf), "end must be a finite number, got -inf"),
    ],
)
def test_nonsense_is_refused_with_the_value(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_fractions_of_an_endless_training_are_refused(kind) -> None:
    with pytest.raises(ValueError, match="no known end"):
        kind(1.0, 0.0)(in_epoch(0))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"class_path": "StepDown", "init_args": {"start": 10, "end": 1}}, StepDown(10, 1)),
        (
            {
                "class_path": "lightning_kd.schedules.StepDown",
                "init_args": {"start": 4, "end": 1, "every_epochs": None},
            },
            StepDown(4, 1, every_epochs=None),
        ),
        (
            {"class_path": "Linear", "init_args": {"start": 0.5, "end": 0, "until": 0.1}},
            Linear(0.5, 0, 0.1),
        ),
        ({"class_path": "Constant", "init_args": {"value": 2}}, Constant(2)),
        ({"class_path": "Cosine", "init_args": {"start": 1, "end": 0}}, Cosine(1, 0)),
    ],
)
def test_every_schedule_comes_out_of_yaml(config, expected) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--schedule", type=Schedule)
    parsed = parser.parse_object({"schedule": config})
    assert parser.instantiate(parsed).schedule == expected
    again = parser.parse_string(
        parser.dump(parsed, skip_unset=False)
    )  # what a run folder's config.yaml needs
    assert parser.instantiate(again).schedule == expected
