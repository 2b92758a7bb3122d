"""Annealing-KD: the teacher's share by hand, the switch to the labels, resuming; checks A1-A11."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_kd.frozen import Frozen
from lightning_kd.functional import annealed_logit_mse
from lightning_kd.methods import AnnealingKD
from lightning_kd.phases import Phase, fit_phases
from lightning_kd.run_checkpoints import run_checkpoints
from lightning_kd.tasks import Classification
from tests import tiny
from tests.conformance.matrix import TinyData, differing, trainer, weights
from tests.methods.lookup import STUDENT, TEACHER, THREE, Lookup, rows

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")

TASK = tiny.TASKS["classification"]
LABELS = torch.tensor([0, 1])


def by_hand(student: Tensor = STUDENT, **settings: Any) -> AnnealingKD:
    settings = {"max_temperature": 4, "teacher_epochs": 4, **settings}
    return AnnealingKD(Lookup(student), THREE, Lookup(TEACHER), **settings)


@pytest.mark.parametrize(
    ("temperature", "sums", "mean"),
    [(4, 0.050625, 0.016875), (3, 0.8225, 0.274167), (2, 2.625625, 0.875208), (1, 5.46, 1.82)],
)
def test_a1_the_first_phase_is_the_table_of_the_check(temperature, sums, mean) -> None:
    for reduction, expected in (("sum", sums), ("mean", mean)):
        module = by_hand(reduction=reduction)
        module.temperature = float(temperature)
        loss = module.objective(rows(LABELS))
        assert set(loss) == {"annealed"}
        assert loss["annealed"].item() == pytest.approx(expected, abs=1e-6)


def test_the_second_phase_is_the_task_s_loss_and_asks_no_teacher() -> None:
    module = by_hand()
    module.begin_phase(module.phases[1])
    assert module.objective(rows(LABELS))["hard"].item() == pytest.approx(0.796083, abs=1e-6)
    assert module.teacher is not None
    assert module.teacher.module.calls == 0


def test_centered_logits_ignore_what_softmax_ignores() -> None:
    moved, plain = (by_hand(student, center_logits=True) for student in (STUDENT + 5, STUDENT))
    torch.testing.assert_close(
        moved.objective(rows(LABELS))["annealed"], plain.objective(rows(LABELS))["annealed"]
    )


def test_a10_answers_and_scores_of_a_regression_have_one_shape() -> None:
    task = tiny.TASKS["regression"]
    module = AnnealingKD(Lookup(torch.tensor([[1.0], [5.0]])), task, Lookup(torch.zeros(2, 1)))
    module.phase = "labels"
    assert module.objective(rows(torch.tensor([1.0, 5.0])))["hard"].item() == 0


class Places(Classification):
    """Two answers that are places in a text, some of which are padding."""

    def logit_mask(self, batch):
        return torch.tensor([[[True, True, False]], [[True, False, False]]])


def test_a11_places_that_cannot_be_answers_do_not_count() -> None:
    losses = []
    for beyond in (0.0, 1e6):
        student, teacher = torch.randn(2, 2, 2, 3, generator=torch.Generator().manual_seed(0))
        student[:, :, 2] = beyond
        student[1, :, 1] = -beyond
        module = AnnealingKD(Lookup(student), Places("places", "abc"), Lookup(teacher))
        losses.append(module.objective(rows(LABELS))["annealed"].item())
    assert losses[0] == losses[1] < 100


def test_phases_are_the_two_stages_and_where_the_second_begins() -> None:
    given: Any = {"teacher_epochs": 14, "label_epochs": 4}
    assert by_hand(**given).phases == (Phase("teacher", 14), Phase("labels", 4, "best"))
    last = by_hand(**given, best_from="final_temperature")
    assert last.phases == (Phase("teacher", 14), Phase("labels", 4, "last"))
    assert by_hand(label_epochs=0).phases == (Phase("teacher", 4),)


def test_a3_the_released_rule_warns_where_it_overshoots() -> None:
    with pytest.warns(UserWarning, match=r"ends at temperature -2: .* up to 1\.3; take"):
        by_hand(max_temperature=10, teacher_epochs=25, schedule="official")
    by_hand(max_temperature=7, teacher_epochs=14, schedule="official")  # divides: says nothing


# Real trainings


class Trace(L.Callback):
    """The temperature of each batch, by phase."""

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = defaultdict(list)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen[pl_module.phase].append(pl_module.temperature)


class DiedError(Exception):
    """In the place of a kill."""


class Dies(L.Callback):
    def __init__(self, phase, step) -> None:
        self.where = phase, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if (pl_module.phase, trainer.global_step) == self.where:
            raise DiedError


def run(
    folder: Path, *callbacks: L.Callback, batch_size=4, module=None, every=100, **settings
) -> AnnealingKD:
    module = module or tiny.method("AnnealingKD", TASK, learning_rate=0.01)

    def trainer_for(phase, checkpoints):
        own = [*callbacks, *run_checkpoints(checkpoints, "val/accuracy", every)]
        limits = {"max_epochs": phase.max_epochs, "enable_checkpointing": True}
        return trainer(callbacks=own, **limits, **settings)

    fit_phases(module, TinyData(TASK, batch_size), folder, trainer_for)
    assert isinstance(module, AnnealingKD)
    return module


def test_a3_the_temperature_falls_in_the_first_phase_alone(tmp_path) -> None:
    trace = Trace()
    run(tmp_path, trace)
    assert trace.seen["teacher"] == [3] * 3 + [2] * 3 + [1] * 3  # 3 epochs of 3 batches
    assert trace.seen["labels"] == [1] * 6


def test_a5_the_second_phase_never_touches_the_teacher(tmp_path) -> None:
    class Poison(L.Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            if pl_module.phase == "labels":
                for parameter in pl_module.teacher.module.parameters():
                    parameter.data.fill_(float("nan"))

    before = weights(tiny.taught(TASK)["teacher"])
    clean = run(tmp_path / "clean")
    assert clean.teacher is not None
    assert differing(before, weights(clean.teacher.module)) == []
    assert all(p.grad is None for p in clean.teacher.module.parameters())
    poisoned = run(tmp_path / "poisoned", Poison())
    assert differing(weights(clean), weights(poisoned)) == []


def test_a_teacher_given_by_name_is_dropped_before_the_labels(tmp_path) -> None:
    module = tiny.method("AnnealingKD", TASK, teacher=tiny.named_model())
    trained = run(tmp_path, module=module)
    assert trained.teacher is None
    trained.begin_phase(trained.phases[0])
    trained.load_teacher()
    assert isinstance(trained.teacher, Frozen)


@pytest.mark.parametrize(("best_from", "epoch"), [("stage1", 1), ("final_temperature", 2)])
def test_a6_the_labels_begin_with_the_chosen_student_and_a_fresh_optimizer(
    best_from, epoch, tmp_path
) -> None:
    class Scored(L.Callback):
        def __init__(self) -> None:
            self.kept: list[dict[str, Tensor]] = []
            self.began: dict[str, Tensor] | None = None

        def on_validation_end(self, trainer, pl_module) -> None:
            scores = [0.1, 0.9, 0.2]
            trainer.callback_metrics["val/accuracy"] = torch.tensor(scores[trainer.current_epoch])
            self.kept.append(weights(pl_module))

        def on_train_start(self, trainer, pl_module) -> None:
            assert len(trainer.optimizers[0].state) == 0
            self.began = weights(pl_module)

    scored = Scored()
    run(tmp_path, scored, module=tiny.method("AnnealingKD", TASK, best_from=best_from))
    assert scored.began is not None
    assert differing(scored.kept[epoch], scored.began) == []


@pytest.mark.parametrize(("phase", "step"), [("teacher", 5), ("labels", 4)])
def test_a7_a_resumed_run_is_the_same_run(phase, step, tmp_path) -> None:
    straight, first, second = Trace(), Trace(), Trace()
    whole = run(tmp_path / "whole", straight, every=1)
    with pytest.raises(DiedError):
        run(tmp_path / "cut", first, Dies(phase, step), every=1)
    resumed = run(tmp_path / "cut", second, every=1)
    assert len(first.seen[phase]) == step
    assert first.seen[phase] + second.seen[phase] == straight.seen[phase]
    assert differing(weights(whole), weights(resumed)) == []


def test_a8_accumulated_halves_are_the_whole_batch(tmp_path) -> None:
    whole, halves = Trace(), Trace()

    def module() -> AnnealingKD:  # Adam would make much of the last bit
        made = tiny.method("AnnealingKD", TASK, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        assert isinstance(made, AnnealingKD)
        return made

    one = run(tmp_path / "one", whole, module=module(), batch_size=4)
    two = run(tmp_path / "two", halves, module=module(), batch_size=2, accumulate_grad_batches=2)
    assert halves.seen["teacher"][::2] == halves.seen["teacher"][1::2] == whole.seen["teacher"]
    for left, right in zip(weights(one).values(), weights(two).values(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


def test_a9_kept_answers_train_like_the_live_teacher(tmp_path) -> None:
    live = run(tmp_path / "live")
    cached = tiny.method("AnnealingKD", TASK, learning_rate=0.01, teacher_cache="run")
    run(tmp_path / "cached", module=cached, default_root_dir=tmp_path / "cached")
    for left, right in zip(weights(live).values(), weights(cached).values(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [3, 2, 1.5]), ("cosine", [3, 2, 1.292893]), ("constant", [1, 1, 1])],
)
def test_other_shapes_at_the_start_the_half_and_three_quarters(schedule, expected) -> None:
    trace = Trace()
    module = tiny.method("AnnealingKD", TASK, schedule=schedule)
    trainer(max_epochs=4, callbacks=[trace]).fit(module, datamodule=TinyData(TASK))
    assert [trace.seen[""][batch] for batch in (0, 6, 9)] == pytest.approx(expected)


def test_constant_is_plain_regression_of_the_logits() -> None:
    module = by_hand(schedule="constant", reduction="sum")
    expected = annealed_logit_mse(STUDENT, TEACHER, reduction="sum").mean()
    assert nn.functional.mse_loss(STUDENT, TEACHER).item() * 3 == pytest.approx(expected.item())
    torch.testing.assert_close(module.objective(rows(LABELS))["annealed"].detach(), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_temperature": 0}, "max_temperature must be at least 1, got 0"),
        ({"max_temperature": 10, "teacher_epochs": 5}, "each of 10 temperatures .* got teacher_ep"),
        ({"label_epochs": -1}, "label_epochs must be at least 0, got -1"),
        ({"schedule": "zigzag"}, "schedule must be stepwise, .*, got 'zigzag'"),
        ({"reduction": "none"}, "reduction must be mean or sum, got 'none'"),
        ({"best_from": "first"}, "best_from must be stage1 or final_temperature, got 'first'"),
    ],
)
def test_nonsense_is_refused_with_the_value(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        by_hand(**settings)


def test_a_single_logit_cannot_be_centered() -> None:
    with pytest.raises(ValueError, match="nothing of the single logit of stsb"):
        tiny.method("AnnealingKD", tiny.TASKS["regression"], center_logits=True)
