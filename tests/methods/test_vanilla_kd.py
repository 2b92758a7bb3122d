"""The two terms of Hinton's objective, their limits, and the control on logits."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from lightning_kd.methods import FineTuning, VanillaKD
from tests import tiny

TASK = tiny.TASKS["classification"]


def kd(**settings) -> VanillaKD:
    return VanillaKD(tiny.model(), TASK, teacher=tiny.model(seed=1), **settings)


def logits(module, batch) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return module.predict(batch).logits, module.teach(batch).logits


def test_the_terms_are_those_of_torch() -> None:
    module, batch, tau = kd(alpha=0.3, temperature=4.0), tiny.batch(), 4.0
    student, teacher = logits(module, batch)
    terms = module.objective(batch)
    hard = 0.7 * cross_entropy(student, batch["labels"])
    divergence = kl_div(
        log_softmax(student / tau, -1), softmax(teacher / tau, -1), reduction="batchmean"
    )
    torch.testing.assert_close(terms["hard"], hard)
    torch.testing.assert_close(terms["soft"], 0.3 * tau**2 * divergence)


def test_the_control_is_the_mean_squared_difference_of_logits() -> None:
    module, batch = kd(alpha=1.0, loss="mse"), tiny.batch()
    student, teacher = logits(module, batch)
    terms = module.objective(batch)
    assert set(terms) == {"soft"}
    torch.testing.assert_close(terms["soft"], torch.nn.functional.mse_loss(student, teacher))


def test_without_weight_the_teacher_is_not_asked_and_it_is_fine_tuning() -> None:
    module = kd(alpha=0.0)
    module.teacher = None
    expected = FineTuning(tiny.model(), TASK).objective(tiny.batch())
    assert module.objective(tiny.batch()) == expected


def test_without_weight_the_teacher_is_not_even_loaded() -> None:
    module = VanillaKD(tiny.model(), TASK, teacher="/no/such/folder", alpha=0.0)
    tiny.trainer(max_steps=1).fit(module, tiny.loader(), tiny.loader())
    assert module.teacher is None


def test_on_regression_the_soft_term_is_a_squared_error() -> None:
    task = tiny.TASKS["regression"]
    teacher = tiny.model("bert", task, seed=1)
    module = VanillaKD(tiny.model("bert", task), task, teacher=teacher, alpha=1.0)
    batch = tiny.batch(4, task)
    student, taught = logits(module, batch)
    torch.testing.assert_close(module.objective(batch)["soft"], (student - taught).square().mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.1}, r"alpha must be in \[0, 1\], got 1.1"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"loss": "ce"}, "loss must be kl or mse, got 'ce'"),
    ],
)
def test_a_value_that_means_nothing_is_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        kd(**settings)
