"""Continuation-KD: its loss by hand, its limits, the margin of its own, resuming; checks C1-C9."""

from collections import defaultdict
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_kd.functional import quantile_margin
from lightning_kd.methods import AnnealingKD, ContinuationKD
from lightning_kd.paper_schedules import LinearPsi, StepPsi
from lightning_kd.schedules import Constant, Linear
from tests import tiny
from tests.conformance.matrix import differing, fit, weights
from tests.methods.lookup import STUDENT, TEACHER, THREE, Lookup, rows

TASK = tiny.TASKS["classification"]
BATCH = rows(torch.tensor([0, 1]))


def by_hand(temperature=3, psi=0.0, **settings: Any) -> ContinuationKD:
    settings = {"margin": 1.0, "max_temperature": 4, **settings}
    module = ContinuationKD(Lookup(STUDENT), THREE, Lookup(TEACHER), **settings)
    module.temperature, module.psi = float(temperature), psi
    return module


def hinge_of(**settings: Any) -> float:
    return by_hand(**settings).objective(BATCH)["hinge"].item()


@pytest.mark.parametrize(
    ("temperature", "margin", "sample", "batch"),
    [(4, 1, 0, 0), (3, 1, 0.3225, 0.3225), (3, 1.6, 0.0975, 0.0225), (1, 2, 3.46, 3.46)],
)
def test_c1_the_hinge_is_the_table_of_the_check(temperature, margin, sample, batch) -> None:
    given = {"temperature": temperature, "margin": float(margin)}
    assert hinge_of(**given) == pytest.approx(sample, abs=1e-6)
    assert hinge_of(**given, hinge_level="batch") == pytest.approx(batch, abs=1e-6)
    by_mean = hinge_of(**{**given, "margin": margin / 3}, reduction="mean")
    assert by_mean == pytest.approx(sample / 3, abs=1e-6)


@pytest.mark.parametrize("temperature", [1, 2, 3, 4])
def test_c1_without_a_margin_it_is_annealing_kd(temperature) -> None:
    other = AnnealingKD(
        Lookup(STUDENT), THREE, Lookup(TEACHER), 4, teacher_epochs=4, reduction="sum"
    )
    other.temperature = float(temperature)
    expected = other.objective(BATCH)["annealed"].item()
    assert hinge_of(temperature=temperature, margin=0.0) == expected


def test_c2_the_whole_loss_and_its_gradient() -> None:
    module = by_hand(psi=0.25, margin=1.6)
    terms = module.objective(BATCH)
    assert terms["hard"].item() == pytest.approx(0.25 * 0.796083, abs=1e-6)
    loss = terms["hard"] + terms["hinge"]
    assert loss.item() == pytest.approx(0.272146, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, list(module.student.parameters()))
    expected = [[-0.073157, 0.034751, 0.038406], [-0.146390, -0.326171, 0.697562]]
    torch.testing.assert_close(gradient, torch.tensor(expected), rtol=0, atol=2e-6)


def test_each_part_is_annealed_on_its_own() -> None:
    # T = 3: phi = 1/2; whole teacher: distances 3.7 and 7.22, whole margin: 1.6
    assert hinge_of(margin=1.6, anneal_teacher=False) == pytest.approx((2.9 + 6.42) / 2)
    assert hinge_of(margin=0.8, anneal_margin=False) == pytest.approx(0.0975, abs=1e-6)
    both = {"anneal_teacher": False, "anneal_margin": False}
    assert hinge_of(margin=1.6, **both) == pytest.approx((2.1 + 5.62) / 2)


def test_c8_at_the_ends_the_other_half_is_not_computed() -> None:
    class Unasked(type(THREE)):  # type: ignore[misc]
        def hard_loss(self, prediction, batch):
            raise AssertionError("the labels have no weight")

    teacher_only = by_hand(psi=0.0)
    teacher_only.task = Unasked("three", "abc")
    assert set(teacher_only.objective(BATCH)) == {"hinge"}
    labels_only = by_hand(psi=1.0, margin="auto")
    assert set(labels_only.objective(BATCH)) == {"hard"}
    assert labels_only.teacher is not None
    assert labels_only.teacher.module.calls == 0


# Real trainings


class Trace(L.Callback):
    """Temperature, psi and how often the teacher was asked so far, after each batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []
        self.logged: dict[str, list[float]] = defaultdict(list)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append((pl_module.temperature, pl_module.psi))
        for name, value in trainer.logged_metrics.items():
            self.logged[name].append(float(value))


def test_c8_the_teacher_is_asked_while_psi_is_below_one_and_no_longer(monkeypatch) -> None:
    calls: list[float] = []
    teach = ContinuationKD.teach

    def counted(self, batch):
        calls.append(self.psi)
        return teach(self, batch)

    monkeypatch.setattr(ContinuationKD, "teach", counted)
    module = tiny.method("ContinuationKD", TASK, psi=LinearPsi(8, until=2))
    fit(module, max_epochs=4)
    assert calls == [1 / 8] * 3 + [2 / 8] * 3  # three batches in each of two epochs


def test_c8_a_teacher_by_name_is_dropped_when_psi_is_one_for_good(tmp_path) -> None:
    held: list[bool] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            held.append(pl_module.teacher is not None)

    def made() -> Any:
        psi = LinearPsi(4, until=1)
        name = tiny.named_model()
        return tiny.method("ContinuationKD", TASK, teacher=name, psi=psi, margin="auto")

    whole, resumed = made(), made()
    fit(whole, folder=tmp_path, max_epochs=3, callbacks=[Look()])
    assert held == [True] * 3 + [False] * 6
    middle = tmp_path / "step=5.ckpt"
    fit(resumed, folder=tmp_path, ckpt_path=middle, max_epochs=3, callbacks=[Look()])
    assert held[9:] == [False] * 4
    assert differing(weights(whole), weights(resumed)) == []


def test_c9_a_resumed_run_has_the_same_numbers(tmp_path) -> None:
    def made() -> Any:
        return tiny.method("ContinuationKD", TASK, margin="auto", psi=LinearPsi(4, until=3))

    whole, resumed, straight, rest = made(), made(), Trace(), Trace()
    fit(whole, folder=tmp_path, max_epochs=4, callbacks=[straight])
    middle = tmp_path / "step=5.ckpt"
    fit(resumed, folder=tmp_path, ckpt_path=middle, max_epochs=4, callbacks=[rest])
    assert straight.seen[5:] == rest.seen
    assert [seen for seen, _ in straight.seen] == [2] * 6 + [1] * 6
    assert whole.margin == resumed.margin
    assert differing(weights(whole), weights(resumed)) == []


def test_c6_with_a_step_and_no_margin_it_is_annealing_kd_without_its_reload() -> None:
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.05)

    plain: dict[str, Any] = {"optimizer": sgd, "lr_schedule": "constant", "warmup_fraction": 0.0}
    loader = tiny.loader()
    whole = tiny.method(
        "ContinuationKD",
        TASK,
        psi=StepPsi(3),
        max_temperature=3,
        anneal_over="kd_epochs",
        reduction="mean",
        **plain,
    )
    losses: list[list[float]] = [[], []]

    class Losses(L.Callback):
        def __init__(self, kept: list[float]) -> None:
            self.kept = kept

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            self.kept.append(outputs["loss"].item())

    tiny.trainer(Losses(losses[0]), max_epochs=5).fit(whole, loader, loader)
    staged = tiny.method("AnnealingKD", TASK, teacher=tiny.skilled_teacher(TASK), **plain)
    for phase in staged.phases:
        staged.begin_phase(phase)
        tiny.trainer(Losses(losses[1]), max_epochs=phase.max_epochs).fit(staged, loader, loader)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for left, right in zip(weights(whole).values(), weights(staged).values(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


# The margin


def test_the_automatic_margin_is_the_quantile_of_the_training_set_s_answers() -> None:
    module: Any = tiny.method("ContinuationKD", TASK, margin="auto", margin_quantile=0.6)
    fit(module, max_steps=1)
    norms = module.teach(tiny.batch(12, TASK)).logits.square().sum(-1)
    assert norms.min() < norms.max()
    assert module.margin == pytest.approx(quantile_margin(norms, 2, quantile=0.6), rel=1e-5)


def test_finding_the_margin_disturbs_nothing() -> None:
    found = tiny.method("ContinuationKD", TASK, margin="auto", margin_quantile=0.9)
    fit(found)
    given = tiny.method("ContinuationKD", TASK, margin=found.margin)
    fit(given)
    assert differing(weights(found), weights(given)) == []


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_automatic_margin_is_found_with_a_plain_loader_too(batch_size) -> None:
    module: Any = tiny.method("ContinuationKD", TASK, margin="auto")
    tiny.trainer(max_epochs=1).fit(module, tiny.loader(16, batch_size), tiny.loader())
    norms = module.teach(tiny.batch(16, TASK)).logits.square().sum(-1)
    assert module.margin == pytest.approx(quantile_margin(norms, 2), rel=1e-5)


def untrained(margin) -> tuple[Any, Any]:
    """A student that answers 0, and a teacher of squared norm 20 at a highest temperature of 10."""
    teacher = Lookup(torch.tensor([[4.0, -2.0]] * 4))
    settings: Any = {"margin": margin, "psi": StepPsi(9), "learning_rate": 1e-4}
    batch = rows(torch.zeros(4, dtype=torch.long))
    data = [{key: value[i] for key, value in batch.items()} for i in range(4)]
    module = ContinuationKD(Lookup(torch.zeros(4, 2)), TASK, teacher, **settings)
    return module, DataLoader(data, batch_size=2)  # type: ignore[arg-type]


def test_c7_a_dead_start_is_told() -> None:
    module, loader = untrained(2.01)
    with pytest.warns(UserWarning, match=r"moved only 0.0% .* margin of 2.01; lower margin"):
        tiny.trainer(max_epochs=1).fit(module, loader, loader)
    assert not module.student.logits.any()


def test_c7_below_it_the_student_moves_and_nothing_is_told() -> None:
    module, loader = untrained(1.9)
    trace = Trace()
    tiny.trainer(trace, max_epochs=1, log_every_n_steps=1).fit(module, loader, loader)
    assert trace.logged["train/hinge"][0] == pytest.approx(0.01, abs=1e-6)
    assert trace.logged["train/active"][0] == 1
    assert module.student.logits.all()


def test_a_margin_that_is_not_known_yet_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="margin=auto is known when a training has started"):
        by_hand(margin="auto").objective(BATCH)


@pytest.mark.parametrize("psi", [Linear(1, 0), Constant(1.5), Constant(-0.5)])
def test_a_weight_that_falls_or_is_none_is_refused(psi) -> None:
    with pytest.raises(ValueError, match=r"psi must rise from 0 to 1, its epochs begin at \["):
        fit(tiny.method("ContinuationKD", TASK, psi=psi))


def test_a_loaded_checkpoint_has_its_numbers(tmp_path) -> None:
    module = tiny.method(
        "ContinuationKD", TASK, teacher=tiny.named_model(), margin=1e-6, psi=StepPsi(1)
    )
    module.hparams["student"], module.hparams["task"] = tiny.named_model(), "sst2"
    fit(module, folder=tmp_path, max_steps=1)
    loaded = ContinuationKD.load_from_checkpoint(tmp_path / "step=1.ckpt", weights_only=True)
    assert loaded.margin == 1e-6
    assert differing(weights(module), weights(loaded)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": -1.0}, "margin must be auto or at least 0, got -1.0"),
        ({"margin": "wide"}, "margin must be auto, got 'wide'"),
        ({"margin_quantile": 2.0}, r"margin_quantile must be in \[0, 1\], got 2.0"),
        ({"max_temperature": 0}, "max_temperature must be at least 1, got 0"),
        ({"schedule": "alg2"}, "schedule must be stepwise or alg1, got 'alg2'"),
        ({"anneal_over": "weeks"}, "anneal_over must be total_epochs or kd_epochs, got 'weeks'"),
        ({"hinge_level": "world"}, "hinge_level must be sample or batch, got 'world'"),
        ({"reduction": "none"}, "reduction must be mean or sum, got 'none'"),
    ],
)
def test_nonsense_is_refused_with_the_value(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        by_hand(**settings)


def test_places_that_cannot_be_answers_count_in_neither_distance_nor_margin() -> None:
    class Places(type(THREE)):  # type: ignore[misc]
        def logit_mask(self, batch):
            return torch.tensor([[True, True, False]])

    def loss(beyond: float) -> Tensor:
        student, teacher = STUDENT.clone(), TEACHER.clone()
        student[:, 2], teacher[:, 2] = beyond, -beyond
        module = ContinuationKD(Lookup(student), Places("p", "abc"), Lookup(teacher), margin=0.1)
        return module.objective(BATCH)["hinge"]

    assert torch.equal(loss(0.0), loss(1e6))
