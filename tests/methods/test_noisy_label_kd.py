"""Co-distillation: each student learns the labels that its peer finds easy (checks 6 and 8.2)."""

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_kd.functional import keep_rate, robust_loss
from lightning_kd.methods import NoisyLabelKD, VanillaKD
from lightning_kd.peer import twin
from lightning_kd.progress import Progress
from lightning_kd.tasks import Task
from tests import tiny
from tests.conformance.matrix import Watch, differing, fit, weights

TASK = tiny.TASKS["classification"]
CO: dict[str, Any] = {"mitigation": "co_distill", "noise_rate": 0.3}


class Answers(nn.Module):
    """A network whose logits are its weights: of losses that are wanted for label 0."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        right = (-torch.tensor(losses)).exp()
        self.rows = nn.Parameter(torch.stack([right, 1 - right], 1).log())

    def forward(self, **_: Any) -> Any:
        return SimpleNamespace(logits=self.rows, hidden_states=None)


OURS, PEERS = [0.1, 2.3, 0.2, 1.5], [0.3, 0.1, 2.0, 0.2]
BATCH = {"labels": torch.zeros(4, dtype=torch.long), "idx": torch.arange(4)}


def pair(**settings: Any) -> NoisyLabelKD:
    """Two students with the losses of check 6."""
    module = NoisyLabelKD(Answers(OURS), TASK, **{**CO, **settings})
    module.peer = Answers(PEERS)
    module.keep_rate = 0.5
    return module


def gradients(module: NoisyLabelKD, *names: str) -> list[Tensor]:
    """Of a sum of terms, with respect to the logits of both students."""
    terms = module.objective(BATCH)
    total = sum((terms[name] for name in names), torch.zeros(()))
    networks: list[Any] = [module.student, module.peer]
    found: Any = torch.autograd.grad(total, [n.rows for n in networks], allow_unused=True)
    return [torch.zeros(4, 2) if g is None else g for g in found]


def moved(gradient: Tensor) -> list[int]:
    return gradient.abs().sum(1).nonzero().flatten().tolist()


def make(seed: int = 0, task: Task = TASK, **settings: Any) -> NoisyLabelKD:
    module = tiny.method("NoisyLabelKD", task, seed, **settings)
    assert isinstance(module, NoisyLabelKD)
    return module


def test_check_6_each_is_updated_on_the_picks_of_the_other() -> None:
    ours, peers = gradients(pair(alpha=0.0), "hard", "peer_hard")
    assert moved(ours) == [1, 3]
    assert moved(peers) == [0, 2]
    terms = pair(alpha=0.0).objective(BATCH)
    assert set(terms) == {"hard", "peer_hard"}
    assert terms["hard"].item() == pytest.approx((2.3 + 1.5) / 2, abs=1e-6)
    assert terms["peer_hard"].item() == pytest.approx((0.3 + 2.0) / 2, abs=1e-6)


def test_unselected_examples_learn_from_the_soft_term_only() -> None:
    hard, _ = gradients(pair(), "hard", "peer_hard")
    soft, _ = gradients(pair(), "soft", "peer_soft")
    both, _ = gradients(pair(), "hard", "peer_hard", "soft", "peer_soft")
    assert moved(hard) == [1, 3]
    assert moved(soft) == [0, 1, 2, 3]
    torch.testing.assert_close(both[[0, 2]], soft[[0, 2]])


def test_no_student_is_moved_by_the_terms_of_the_other() -> None:
    for target in ("mutual", "teacher", "mixed"):
        module = pair(target=target, teacher=Answers(OURS))
        assert moved(gradients(module, "hard", "soft")[1]) == []
        assert moved(gradients(module, "peer_hard", "peer_soft")[0]) == []


def test_without_noise_it_is_mutual_distillation_on_the_whole_batch() -> None:
    module = make(**{**CO, "noise_rate": 0.0}, alpha=0.3)
    batch = tiny.batch(6)
    ours, peers = module.predict(batch).logits, TASK.predict(module.peer, batch).logits
    expected = {
        "hard": 0.7 * cross_entropy(ours, batch["labels"]),
        "peer_hard": 0.7 * cross_entropy(peers, batch["labels"]),
    }
    for name, learner, other in (("soft", ours, peers), ("peer_soft", peers, ours)):
        target = other.softmax(-1)
        kl = (target * (target.log() - learner.log_softmax(-1))).sum(-1)
        expected[name] = 0.3 * kl.mean()
    terms = module.objective(batch)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


def test_without_soft_term_it_is_co_teaching() -> None:
    """Against loops over the examples."""
    module = make(**CO, alpha=0.0)
    module.keep_rate = 0.6
    batch = tiny.batch(8)
    losses = [
        cross_entropy(logits, batch["labels"], reduction="none").tolist()
        for logits in (module.predict(batch).logits, TASK.predict(module.peer, batch).logits)
    ]
    picks = [sorted(range(8), key=one.__getitem__)[:5] for one in losses]  # ceil(0.6 * 8)
    terms = module.objective(batch)
    for name, mine, theirs in (("hard", 0, 1), ("peer_hard", 1, 0)):
        expected = sum(losses[mine][i] for i in picks[theirs]) / 5
        assert terms[name].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {**CO, "noise_rate": 0.0, "target": "teacher"}], ids=str)
def test_a_teachers_target_without_noise_is_vanilla_distillation(settings) -> None:
    batch = tiny.batch(6)
    weighting: dict[str, Any] = {"alpha": 0.3, "temperature": 2.0}
    ours = make(**settings, **weighting).objective(batch)
    vanilla = tiny.method("VanillaKD", **weighting)
    assert isinstance(vanilla, VanillaKD)
    for name, value in vanilla.objective(batch).items():
        assert torch.equal(ours[name], value)


def test_mixed_targets_have_the_gradient_of_the_mean_of_both() -> None:
    teacher = Answers([0.7, 0.3, 1.0, 0.2])
    ours, _ = gradients(pair(target="mixed", teacher=teacher, alpha=1.0), "soft")
    module = pair()
    networks: list[Any] = [module.student, module.peer, teacher]
    student, peer, taught = (network.rows.detach().requires_grad_() for network in networks)
    target = (peer.softmax(-1) + taught.softmax(-1)) / 2
    loss = -(target.detach() * student.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(ours, torch.autograd.grad(loss, student)[0])


def test_a_peer_has_another_head_on_the_same_encoder() -> None:
    student = tiny.model()
    differ = differing(weights(student), weights(twin(student, 3)))
    assert set(differ) == {"classifier.weight", "classifier.bias"}
    plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    assert len(differing(weights(plain), weights(twin(plain, 3)))) == 4  # no encoder to keep


def test_the_share_that_is_kept_falls_to_what_is_thought_to_be_clean() -> None:
    module = make(**{**CO, "noise_rate": 0.4}, ramp_fraction=0.5)
    seen: list[float] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            seen.append(pl_module.keep_rate)

    fit(module, max_steps=6, callbacks=[Look()])
    expected = [keep_rate(step / 6 * 10, 0.4, 5.0) for step in range(6)]
    assert seen == pytest.approx(expected)
    assert module.schedule is not None
    line = module.schedule.schedules["keep_rate"]
    assert line(Progress(6, 6, 2, 2)) == pytest.approx(0.6)


@pytest.mark.parametrize("task", tiny.TASKS.values(), ids=lambda task: task.name)
def test_a_resumed_pair_ends_with_the_same_bits(task, tmp_path) -> None:
    whole, resumed = make(task=task, **CO), make(task=task, **CO)
    fit(whole, folder=tmp_path)
    torch.manual_seed(99)
    fit(resumed, folder=tmp_path, ckpt_path=tmp_path / "step=2.ckpt")
    assert differing(weights(whole), weights(resumed)) == []
    changed = differing(weights(whole), weights(make(task=task, **CO)))
    assert {name.partition(".")[0] for name in changed} == {"student", "peer"}


def test_both_are_saved_and_one_is_exported(tmp_path) -> None:
    folder = tiny.model_folder(tmp_path / "model")
    module = NoisyLabelKD(str(folder), "sst2", learning_rate=0.01, **CO)
    fit(module, folder=tmp_path, max_steps=2)
    loaded = NoisyLabelKD.load_from_checkpoint(tmp_path / "step=2.ckpt", weights_only=True)
    assert differing(weights(module), weights(loaded)) == []
    module.export(tmp_path / "export")
    from transformers import AutoModelForSequenceClassification

    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    assert differing(weights(module.student), weights(exported)) == []


def test_both_train_in_train_mode() -> None:
    module = make(**CO)
    module.student.eval()
    module.peer.eval()
    asleep: list[bool] = []
    fit(
        module, callbacks=[Watch(lambda m: asleep.append(not vars(m)["_modules"]["peer"].training))]
    )
    assert asleep
    assert not any(asleep)


def test_mutual_students_need_no_teacher_and_the_others_say_so() -> None:
    fit(NoisyLabelKD(tiny.model(), TASK, **CO), max_steps=1)
    for settings in ({}, {**CO, "target": "mixed"}, {"mitigation": "label_refine"}):
        with pytest.raises(ValueError, match="needs a teacher; give"):
            fit(NoisyLabelKD(tiny.model(), TASK, **settings), max_steps=1)


@pytest.mark.parametrize(
    ("settings", "asks"),
    [
        ({}, True),
        ({"alpha": 0.0}, False),
        (CO, False),
        ({**CO, "target": "teacher"}, True),
        ({**CO, "target": "mixed"}, True),
        ({"mitigation": "label_refine"}, False),
    ],
    ids=str,
)
def test_a_teacher_that_nobody_asks_is_not_loaded(settings, asks, tmp_path) -> None:
    settings = {"teacher": tiny.named_model(), "fold_dir": str(tmp_path), **settings}
    module = NoisyLabelKD(tiny.model(), TASK, **settings)
    assert module.asks_teacher == asks
    fit(module, max_steps=1)
    assert (module.teacher is not None) == asks


@pytest.mark.parametrize("name", ["mae", "gce", "sce", "forward"])
def test_robust_losses_take_the_place_of_the_hard_one(name) -> None:
    batch = tiny.batch(6)
    module = make(hard_loss=name, noise_rate=0.2, alpha=0.25)
    loss = robust_loss(name, 0.2, 2)(module.predict(batch).logits, batch["labels"])
    torch.testing.assert_close(module.objective(batch)["hard"], 0.75 * loss.mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mitigation": "clean"}, "mitigation must be none, co_distill or label_refine, got"),
        ({"hard_loss": "ce"}, "hard_loss must be task, mae"),
        ({"target": "self"}, "target must be mutual"),
        ({"refine": "both"}, "refine must be hard"),
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1\.5"),
        ({"blend": -1}, r"blend must be in \[0, 1\], got -1"),
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"threshold": -0.1}, r"threshold must be at least 0, got -0\.1"),
        ({"noise_rate": 1.0}, r"noise_rate must be in \[0, 1\), got 1\.0"),
        ({"mitigation": "co_distill"}, "co_distill and hard_loss forward need a noise_rate"),
        ({"hard_loss": "forward"}, "co_distill and hard_loss forward need a noise_rate"),
        ({"folds": 1}, "at least 2 folds and 1 epoch, got folds=1"),
        ({"fold_epochs": 0}, "at least 2 folds and 1 epoch, .* fold_epochs=0"),
        ({"task": tiny.TASKS["regression"], "hard_loss": "mae"}, "stsb has none"),
        ({"task": tiny.TASKS["regression"], "mitigation": "label_refine"}, "stsb has none"),
    ],
    ids=lambda value: "-".join([value] if isinstance(value, str) else value),  # no task's address
)
def test_what_makes_no_sense_is_named(settings, message) -> None:
    task = settings.pop("task", TASK)
    with pytest.raises(ValueError, match=message):
        make(task=task, **settings)
