"""Pro-KD: losses by hand, places, what cannot be followed; checks 1-4 of its spec."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.functional import smoothing_factor
from lightning_kd.methods import ProKD
from tests import tiny
from tests.conformance.matrix import fit
from tests.methods.lookup import THREE, Lookup, rows
from tests.trajectories import recorded, table, trajectory

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")

TASK = tiny.TASKS["classification"]
LABELS = torch.tensor([0])


def by_hand(folder: Path, **settings: Any) -> ProKD:
    """The fixture of check 3: one example, two checkpoints, a student in between."""
    path = recorded(folder, table(1, 0, -1), table(3, -1, -2), labels=THREE.labels)
    student, teacher = Lookup(torch.tensor([[0.2, 0.1, -0.3]])), Lookup(torch.zeros(1, 3))
    given: Any = {"max_temperature": 2, "teacher_epochs": 2, "reduction": "sum", **settings}
    return ProKD(student, THREE, teacher, trajectory=path, **given)


def loss_at(module: ProKD, epoch: int) -> dict[str, float]:
    """The loss terms in an epoch, with the teacher that it has."""
    if module.path is None:
        module._open()
    j, module.temperature = module.place(epoch)
    module._stand_at(module.followed[j - 1])
    return {name: term.item() for name, term in module.objective(rows(LABELS)).items()}


def test_3_the_loss_of_both_checkpoints(tmp_path) -> None:
    module = by_hand(tmp_path)
    assert [loss_at(module, e)["followed"] for e in (0, 1)] == pytest.approx([0.14, 11.94])
    mean = by_hand(tmp_path, reduction="mean")
    assert [loss_at(mean, e)["followed"] for e in (0, 1)] == pytest.approx([0.14 / 3, 3.98])
    plain = by_hand(tmp_path, smoothing=False)
    assert [loss_at(plain, e)["followed"] for e in (0, 1)] == pytest.approx([1.14, 11.94])


def test_the_other_reading_softens_both_distributions(tmp_path) -> None:
    module = by_hand(tmp_path, loss="kl", alpha=0.75)
    student = torch.tensor([0.2, 0.1, -0.3])
    for epoch, teacher, tau in ((0, [1.0, 0, -1], 2), (1, [3.0, -1, -2], 1)):
        p, q = (torch.softmax(z / tau, -1) for z in (torch.tensor(teacher), student))
        terms = loss_at(module, epoch)
        divergence = float((p * (p / q).log()).sum()) * tau**2
        assert terms["followed"] == pytest.approx(0.75 * divergence, rel=1e-5)
        hard = -float(torch.log_softmax(student, -1)[0])
        assert terms["hard"] == pytest.approx(0.25 * hard, rel=1e-5)


def places(module: ProKD) -> list[tuple[int, float]]:
    module._open()
    return [module.place(epoch) for epoch in range(module.teacher_epochs)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(1, 4), (1, 4), (2, 3), (2, 3), (3, 2), (3, 2), (4, 1), (4, 1)]),
        ({"num_checkpoints": 2}, [(1, 4)] * 4 + [(2, 1)] * 4),
        ({"num_checkpoints": 1}, [(1, 1)] * 8),
        ({"teacher_epochs": 2}, [(1, 4), (2, 1)]),
        ({"teacher_epochs": 4, "max_temperature": 1}, [(1, 1), (2, 1), (3, 1), (4, 1)]),
        ({"teacher_epochs": 4, "smoothing": False}, [(1, 1), (2, 1), (3, 1), (4, 1)]),
        ({"teacher_epochs": 4, "order": "reversed"}, [(4, 1), (3, 2), (2, 3), (1, 4)]),
        (
            {"teacher_epochs": 4, "order": "reversed", "temperature_by": "epoch"},
            [(4, 4), (3, 3), (2, 2), (1, 1)],
        ),
        (
            {"num_checkpoints": 2, "temperature_by": "epoch"},
            [(1, 4), (1, 4), (1, 3), (1, 3), (2, 2), (2, 2), (2, 1), (2, 1)],
        ),
    ],
)
def test_1_and_2_checkpoint_and_temperature_of_each_epoch(settings, expected, tmp_path) -> None:
    path = recorded(tmp_path, *(table(j) for j in range(4)))
    given = {"max_temperature": 4, "teacher_epochs": 8, **settings}
    module = ProKD(Lookup(torch.zeros(1, 1)), THREE, Lookup(torch.zeros(1, 1)), path, **given)
    assert places(module) == expected
    # whatever was left out, the last is followed in the end unless the order is a control
    assert {c.file for c in module.followed} >= {"checkpoint_0004.safetensors"}


def test_a_shuffled_order_is_a_permutation_and_a_function_of_the_seed(tmp_path) -> None:
    path = recorded(tmp_path, *(table(j) for j in range(6)))

    def order(seed: int) -> list[int]:
        given: Any = {"teacher_epochs": 6, "max_temperature": 1, "order": "shuffled", "seed": seed}
        module = ProKD(Lookup(torch.zeros(1, 1)), THREE, Lookup(torch.zeros(1, 1)), path, **given)
        return [j for j, _ in places(module)]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == [1, 2, 3, 4, 5, 6]


class Linear(nn.Module):
    """Logits that are linear in an orthonormal input: row ``idx`` of the weights."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        inputs = nn.functional.one_hot(input_ids[:, 0], len(self.weight)).to(self.weight.dtype)
        return SimpleNamespace(logits=inputs @ self.weight)


def descend(network: Linear, loss: Tensor, rate: float) -> None:
    (gradient,) = torch.autograd.grad(loss, [network.weight])
    network.weight.data.sub_(rate * gradient)


def test_4_along_a_whitened_linear_teacher_it_is_annealing_with_another_factor(tmp_path) -> None:
    """Gradient descent on whitened inputs has come 1 - (1 - rate)^j of the way after j steps."""
    limit, rate = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), 0.5
    teacher, states = Linear(torch.zeros(3, 3)), []
    for _ in range(4):
        descend(teacher, 0.5 * (teacher.weight - limit).square().sum(), rate)
        states.append({"weight": teacher.weight.detach().clone()})
    path = recorded(tmp_path, *states, labels=THREE.labels)
    batch = rows(torch.tensor([0, 1, 2]))
    for smoothing, factors in (
        (False, [0.5, 0.75, 0.875, 0.9375]),
        (True, [0.125, 0.375, 0.65625, 0.9375]),
    ):
        given: Any = {"max_temperature": 4, "teacher_epochs": 4, "smoothing": smoothing}
        student = Linear(torch.zeros(3, 3))
        module = ProKD(student, THREE, Linear(torch.zeros(3, 3)), path, **given)
        module._open()
        other = Linear(torch.zeros(3, 3))  # learns from the limit, times the factor
        for epoch, factor in enumerate(factors):
            j, module.temperature = module.place(epoch)
            module._stand_at(module.followed[j - 1])
            ours = module.objective({k: v for k, v in batch.items() if k != "idx"})["followed"]
            theirs = (other(batch["input_ids"]).logits - factor * limit).square().mean()
            assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
            for network, loss in ((student, ours), (other, theirs)):
                descend(network, loss, 0.3)
            torch.testing.assert_close(student.weight, other.weight, rtol=0, atol=1e-6)


# What cannot be followed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_temperature": 0}, "max_temperature must be at least 1, got 0"),
        ({"teacher_epochs": 0}, "teacher_epochs must be at least 1, got 0"),
        ({"num_checkpoints": 0}, "num_checkpoints must be at least 1, got 0"),
        ({"record_every_n_steps": 0}, "record_every_n_steps must be at least 1, got 0"),
        ({"label_epochs": -1}, "label_epochs must be at least 0, got -1"),
        ({"num_checkpoints": 3}, "num_checkpoints=3 takes as many teacher_epochs, got 2"),
        ({"temperature_by": "epoch"}, "max_temperature=3 takes as many teacher_epochs, got 2"),
        ({"alpha": 0.0}, r"alpha must be above 0 and at most 1, got 0\.0"),
        ({"loss": "cos"}, "loss must be mse or kl, got 'cos'"),
        ({"temperature_by": "step"}, "temperature_by must be checkpoint or epoch, got 'step'"),
        ({"order": "back"}, "order must be forward, reversed or shuffled, got 'back'"),
        ({"reduction": "none"}, "reduction must be mean or sum, got 'none'"),
        ({"best_from": "first"}, "best_from must be stage1 or last_checkpoint, got 'first'"),
    ],
)
def test_nonsense_is_refused_with_the_value(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.method("ProKD", TASK, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trajectory": None}, "ProKD needs --model.trajectory, or --teacher.epochs"),
        (
            {"teacher": None, "teacher_bits": 4},
            "teacher_bits=4: a teacher whose weights are exchanged",
        ),
        ({"num_checkpoints": 3, "teacher_epochs": 3}, "num_checkpoints=3, but .* has 2; lower"),
        ({"min_metric": 0.95}, r"min_metric=0.95 leaves out all of .* val/accuracy=0\.9; lower it"),
        (
            {"teacher": Lookup(torch.zeros(1, 2))},
            r"does not fit the teacher \(bert\..*nothing here",
        ),
    ],
)
def test_a_trajectory_that_does_not_do_is_refused_before_the_first_step(settings, message) -> None:
    given = {"trajectory": trajectory(tiny.model(seed=1)), **settings}
    with pytest.raises(ValueError, match=message):
        fit(tiny.method("ProKD", TASK, **given))


def test_more_checkpoints_than_the_teacher_will_leave_are_refused_before_it_is_trained(
    tmp_path,
) -> None:
    module = tiny.method("ProKD", TASK, num_checkpoints=2)
    assert isinstance(module, ProKD)
    with pytest.raises(
        ValueError, match=r"num_checkpoints=2, but the teacher's 1 epoch\(s\) leave"
    ):
        module.watch_teacher(tmp_path, epochs=1)
    (recorder,) = module.watch_teacher(tmp_path, epochs=2)
    assert vars(recorder)["folder"] == tmp_path / "trajectory"


def test_the_multiplier_of_the_last_checkpoint_is_always_one(tmp_path) -> None:
    for count, highest in ((1, 7), (2, 4), (3, 7), (5, 3)):
        states = [table(j) for j in range(count)]
        path = recorded(tmp_path / f"{count}", *states)
        given: Any = {"max_temperature": highest, "teacher_epochs": count}
        module = ProKD(Lookup(torch.zeros(1, 1)), THREE, Lookup(torch.zeros(1, 1)), path, **given)
        assert smoothing_factor(places(module)[-1][1], highest) == 1
