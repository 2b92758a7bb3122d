"""Five arms in one class: checks B8, B10 and B12, targets, and the options of each arm."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_kd.functional import label_smoothing_loss, taught_loss, tf_reg_loss
from lightning_kd.methods import FineTuning, LabelRegularization, TaskModule
from lightning_kd.models import load_model
from lightning_kd.tasks import Classification
from tests import tiny
from tests.conformance.matrix import differing, fit, weights

TASK, NUMBER = tiny.TASKS["classification"], tiny.TASKS["regression"]
THREE = Classification("mnli", ("no", "maybe", "yes"))
ARMS = ("none", "label_smoothing", "tf_reg", "self_kd", "kd")
TAUGHT = ("self_kd", "kd")


def made(regularizer, task=TASK, **settings) -> LabelRegularization:
    """One arm on a tiny student, with a teacher (of equal architecture) where it has one."""
    if regularizer in TAUGHT:
        settings.setdefault("teacher", tiny.model("bert", task, seed=1))
    return LabelRegularization(tiny.model("bert", task), task, regularizer, **settings)


def total(module, batch) -> Tensor:
    terms = module.objective(batch)
    return functools.reduce(torch.add, terms.values())


def logits(module, batch) -> Tensor:
    with torch.no_grad():
        found: Tensor = module.student.eval()(
            **{k: batch[k] for k in ("input_ids", "attention_mask")}
        ).logits
    return found


def dropping(method: type[TaskModule], **settings: Any) -> TaskModule:
    """With dropout: a regularizer that draws a random number would shift it."""
    config = tiny.config("bert", hidden_dropout_prob=0.3)
    torch.manual_seed(3)
    student = load_model(config, TASK)
    torch.manual_seed(4)
    return method(student, TASK, learning_rate=0.01, **settings)


@functools.cache
def fine_tuned(steps: int) -> dict[str, Tensor]:
    module = dropping(FineTuning)
    fit(module, max_steps=steps)
    return weights(module)


@pytest.mark.parametrize("arm", ARMS)
def test_b8_without_weight_every_arm_is_fine_tuning_bit_for_bit(arm) -> None:
    teacher = {"teacher": tiny.model(seed=1)} if arm in TAUGHT else {}
    module = dropping(LabelRegularization, regularizer=arm, alpha=0.0, **teacher)
    assert fit(module, max_steps=20).global_step == 20
    assert differing(weights(module), fine_tuned(20)) == []


def test_b8_with_weight_it_is_not() -> None:
    for arm in ARMS[1:]:
        teacher = {"teacher": tiny.model(seed=1)} if arm in TAUGHT else {}
        module = dropping(LabelRegularization, regularizer=arm, alpha=0.3, **teacher)
        fit(module, max_steps=3)
        assert differing(weights(module), fine_tuned(3)) != []


def test_b10_cached_answers_train_the_same_weights(tmp_path) -> None:
    live, cached = made("kd"), made("kd", teacher_cache=str(tmp_path))
    for module in (live, cached):
        fit(module, max_steps=6)  # two epochs
    assert cached.cache is not None
    assert cached.cache.complete
    assert differing(weights(live), weights(cached)) == []


@pytest.mark.parametrize("arm", ["label_smoothing", "tf_reg"])
def test_b12_hand_made_targets_are_not_defined_for_regression(arm) -> None:
    with pytest.raises(ValueError, match=f"{arm} is not defined for regression, and stsb is one"):
        made(arm, NUMBER)


@pytest.mark.parametrize("arm", TAUGHT)
@pytest.mark.parametrize("tau_squared", [True, False])
def test_a_regression_is_taught_by_squared_errors_without_a_temperature(arm, tau_squared) -> None:
    batch = tiny.batch(task=NUMBER)
    module = made(arm, NUMBER, alpha=0.3, temperature=4.0, tau_squared=tau_squared)
    ours = logits(module, batch)[:, 0]
    assert module.teacher is not None
    theirs = module.teach(batch).logits[:, 0]
    expected = 0.7 * (ours - batch["labels"]).square() + 0.3 * (ours - theirs).square()
    torch.testing.assert_close(total(module, batch), expected.mean())
    _, target = module.effective_target(batch)
    torch.testing.assert_close(target[0], 0.7 * batch["labels"][0] + 0.3 * theirs[0])


@pytest.mark.parametrize("over", ["all", "wrong"])
def test_label_smoothing_is_its_function(over) -> None:
    batch = tiny.batch(task=THREE)
    module = made("label_smoothing", THREE, alpha=0.3, smooth_over=over)
    expected = label_smoothing_loss(logits(module, batch), batch["labels"], 0.3, over)
    torch.testing.assert_close(total(module, batch), expected.mean())


@pytest.mark.parametrize("form", ["mixture", "kl"])
def test_tf_reg_is_its_function(form) -> None:
    batch = tiny.batch(task=THREE)
    module = made("tf_reg", THREE, alpha=0.3, gold=0.8, form=form)
    expected = tf_reg_loss(logits(module, batch), batch["labels"], 0.3, 0.8, form)
    torch.testing.assert_close(total(module, batch), expected.mean())


def test_the_released_form_is_the_teacher_free_codes_loss() -> None:
    batch = tiny.batch(task=THREE)
    module = made("tf_reg", THREE, alpha=0.3, gold=0.99, form="released", multiplier=50.0)
    z, labels = logits(module, batch), batch["labels"]
    target = torch.full_like(z, 0.005).scatter(1, labels[:, None], 0.99) / 20.0
    soft = torch.nn.functional.kl_div(
        z.log_softmax(-1), target.softmax(-1), reduction="none"
    ).mean()
    hard = torch.nn.functional.cross_entropy(z, labels)
    torch.testing.assert_close(total(module, batch), 0.7 * hard + 0.3 * 50 * soft)
    assert module.temperature == 20.0
    label, share = module.effective_target(batch)
    uniform = torch.full((3,), 0.327817).index_fill(0, torch.tensor(label), 0.344366)
    onehot = torch.nn.functional.one_hot(torch.tensor(label), 3)
    torch.testing.assert_close(share, 0.7 * onehot + 0.3 * uniform, atol=1e-5, rtol=0)


@pytest.mark.parametrize("arm", TAUGHT)
@pytest.mark.parametrize("tau_squared", [True, False])
def test_kd_is_its_function(arm, tau_squared) -> None:
    batch = tiny.batch(task=THREE)
    settings = {"alpha": 0.3, "temperature": 3.0, "tau_squared": tau_squared}
    module = made(arm, THREE, **settings)
    theirs = module.teach(batch).logits
    expected = taught_loss(logits(module, batch), theirs, batch["labels"], **settings)
    torch.testing.assert_close(total(module, batch), expected.mean())


def test_label_and_regularizer_are_dropped_where_they_have_no_weight() -> None:
    batch = tiny.batch()
    assert set(made("kd", alpha=1.0).objective(batch)) == {"regularizer"}
    assert set(made("kd", alpha=0.0).objective(batch)) == {"hard"}
    assert set(made("none", alpha=0.5).objective(batch)) == {"hard"}


class Places(Classification):
    """The last class stands for padding in the first example: two classes are possible."""

    def logit_mask(self, batch):
        mask = torch.ones(len(batch["labels"]), 3, dtype=torch.bool)
        mask[0, 2] = False
        return mask


def test_smoothing_leaves_out_what_is_no_answer() -> None:
    task = Places("mnli", THREE.labels)
    batch = tiny.batch(task=task)
    batch["labels"][0] = 1
    module = made("label_smoothing", task, alpha=0.3)
    z = logits(module, batch)
    hard = torch.nn.functional.cross_entropy(z, batch["labels"], reduction="none")
    mean = torch.cat([z[:1, :2].mean(-1), z[1:].mean(-1)])
    expected = hard + 0.3 * (z.gather(1, batch["labels"][:, None])[:, 0] - mean)
    torch.testing.assert_close(total(module, batch), expected.mean())
    assert module.effective_target(batch)[1].tolist() == pytest.approx([0.15, 0.85])
    with pytest.raises(ValueError, match="form=kl needs the same number of classes"):
        made("tf_reg", task, form="kl").objective(batch)


def test_a_run_says_what_it_trains_on_and_how_sure_it_is(capsys) -> None:
    module = made("label_smoothing", alpha=0.2)
    found = fit(module, max_steps=2).callback_metrics
    assert capsys.readouterr().out.count("target of an example") == 1
    largest, entropy = float(found["train/max_probability"]), float(found["train/entropy"])
    assert 0.5 <= largest < 1
    assert 0 < entropy <= 0.6932
    taught = made("kd", NUMBER)
    assert "train/entropy" not in fit(taught, max_steps=1).callback_metrics
    assert "the first example is drawn to" in capsys.readouterr().out


def test_a_target_is_printed_with_its_class() -> None:
    batch = tiny.batch(task=THREE)
    batch["labels"][0] = 2
    module = made("tf_reg", THREE, alpha=0.5, gold=0.9)
    module.objective(batch)
    text = "target of an example of class 2 is 0.0250, 0.0250, 0.9500"
    assert text in module._announcement(batch)


def test_self_kd_takes_only_a_copy_of_the_student() -> None:
    made("self_kd").load_teacher()
    other = load_model(tiny.config("bert", num_hidden_layers=1), TASK)
    with pytest.raises(ValueError, match=r"copy of the student.*layer\.1.*use regularizer=kd"):
        made("self_kd", teacher=other).load_teacher()
    wider = load_model(tiny.config("bert", hidden_size=16), TASK)
    with pytest.raises(ValueError, match="another network"):
        made("self_kd", teacher=wider).load_teacher()
    made("kd", teacher=other).load_teacher()


@pytest.mark.parametrize(
    ("arm", "settings", "message"),
    [
        ("kd", {"teacher": None}, "regularizer=kd needs a teacher, a model; give --model.teacher"),
        ("self_kd", {"teacher": None}, "needs a teacher, a fine-tuned copy of the student"),
        ("none", {"teacher": "some"}, "regularizer=none has no teacher; drop teacher, or use kd"),
        ("tf_reg", {"teacher_cache": "x"}, "tf_reg has no teacher; drop teacher_cache"),
        ("noise", {}, "regularizer must be none, label_smoothing, tf_reg, self_kd or kd"),
        ("kd", {"alpha": 1.2}, r"alpha must be in \[0, 1\], got 1.2"),
        ("tf_reg", {"gold": 99.0}, r"gold must be in \[0, 1\], got 99.0"),
        ("kd", {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ("tf_reg", {"form": "released", "multiplier": -1.0}, "multiplier must be positive"),
        ("label_smoothing", {"smooth_over": "some"}, "smooth_over must be all or wrong"),
        ("tf_reg", {"form": "exact"}, "form must be mixture, kl or released"),
        ("label_smoothing", {"temperature": 2.0}, "does not read temperature=2.0; its options"),
        ("tf_reg", {"temperature": 2.0}, "does not read temperature=2.0"),
        ("tf_reg", {"form": "kl", "multiplier": 2.0}, "with form=kl does not read multiplier=2.0"),
        ("none", {"gold": 0.9}, "regularizer=none does not read gold=0.9; it has none"),
    ],
)
def test_what_an_arm_cannot_use_is_refused(arm, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        made(arm, **settings)
