"""Targets, losses and gradients of the label regularizers: checks B1 to B7 and B9."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_kd.functional import (
    gold_entropy,
    gold_target,
    kd_loss,
    label_gap,
    label_smoothing_gold,
    label_smoothing_loss,
    mixed_target,
    softened_gold,
    taught_loss,
    teacher_free_code_loss,
    tf_reg_loss,
)

Z = torch.tensor([1.0, 0.0, -1.0])
Y = torch.tensor(0)
P = torch.tensor([0.665241, 0.244728, 0.090031])
TEACHER = torch.tensor([2.0, 0.0, 0.0])


def gradient(loss, logits: Tensor = Z) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return slope


def close(value, expected) -> None:
    torch.testing.assert_close(
        torch.as_tensor(value, dtype=torch.float32), torch.tensor(expected), atol=2e-6, rtol=0
    )


def by_definition(logits: Tensor, label: int, alpha: float, regularizing: list[float]) -> float:
    """The mixture's cross-entropy, class by class."""
    powers = [math.exp(z) for z in logits.tolist()]
    total = 0.0
    for k, power in enumerate(powers):
        target = (1 - alpha) * (k == label) + alpha * regularizing[k]
        total -= target * math.log(power / sum(powers))
    return total


def test_b1_label_smoothing() -> None:
    uniform = gold_target(Y, 3, label_smoothing_gold(3))
    close(mixed_target(Y, uniform, 0.1), [0.933333, 0.033333, 0.033333])
    close(label_smoothing_loss(Z, Y, 0.1), 0.507606)
    close(gradient(lambda z: label_smoothing_loss(z, Y, 0.1)), [-0.268092, 0.211395, 0.056697])
    close(label_smoothing_loss(Z, Y, 0.1, over="wrong"), 0.557606)


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.3, 1.0])
def test_b1_label_smoothing_over_all_classes_is_pytorchs(alpha) -> None:
    logits, labels = 3 * torch.randn(6, 5), torch.randint(5, (6,))
    expected = cross_entropy(logits, labels, label_smoothing=alpha, reduction="none")
    torch.testing.assert_close(label_smoothing_loss(logits, labels, alpha), expected)


def test_b1_smoothing_over_wrong_classes_is_smoothing_over_all_with_more_weight() -> None:
    logits, labels = torch.randn(6, 2), torch.randint(2, (6,))
    wrong = label_smoothing_loss(logits, labels, 0.1, over="wrong")
    torch.testing.assert_close(wrong, label_smoothing_loss(logits, labels, 0.2))  # c = 2: twice


def test_b2_tf_reg() -> None:
    close(tf_reg_loss(Z, Y, 0.1, 0.99), 0.409106)
    close(tf_reg_loss(Z, Y, 0.1, 0.99, form="kl"), 0.402813)
    assert 0.1 * gold_entropy(0.99, 3) == pytest.approx(0.0062933, abs=1e-7)
    mixture, kl = (
        gradient(lambda z, f=form: tf_reg_loss(z, Y, 0.1, 0.99, form=f))
        for form in ("mixture", "kl")
    )
    assert torch.equal(mixture, kl)
    close(mixed_target(Y, gold_target(Y, 3, 0.99), 0.5), [0.995, 0.0025, 0.0025])
    close(tf_reg_loss(Z, Y, 0.5, 0.99), 0.415106)


def test_b3_label_smoothing_is_teacher_free_regularization_with_another_weight() -> None:
    uniform, uneven = gold_target(Y, 3, 1 / 3), gold_target(Y, 3, 0.9)
    torch.testing.assert_close(mixed_target(Y, uniform, 0.1), mixed_target(Y, uneven, 2 / 3))
    logits, labels = torch.randn(5, 3), torch.randint(3, (5,))
    torch.testing.assert_close(
        label_smoothing_loss(logits, labels, 0.1), tf_reg_loss(logits, labels, 2 / 3, 0.9)
    )


def test_b4_the_teacher_free_codes_own_target_and_reduction() -> None:
    soft = softened_gold(0.99, 3, 20.0)
    close(gold_target(Y, 3, soft), [0.344366, 0.327817, 0.327817])
    close(tf_reg_loss(Z, Y, 1.0, soft, form="kl"), 0.292717)
    close(teacher_free_code_loss(Z, Y, 0.99, 20.0), 0.097572)
    reference = torch.nn.functional.kl_div(  # as that code calls it, with the default reduction
        Z.log_softmax(-1), (gold_target(Y, 3, 0.99) / 20).softmax(-1), reduction="none"
    ).mean()
    torch.testing.assert_close(teacher_free_code_loss(Z, Y, 0.99, 20.0), reference)


def test_b5_kd() -> None:
    close(TEACHER.softmax(-1), [0.786986, 0.106507, 0.106507])
    close(kd_loss(Z, TEACHER), 0.0615542)
    close(taught_loss(Z, TEACHER, Y, 0.3), 0.303790)
    mixed = mixed_target(Y, TEACHER.softmax(-1), 0.3)
    close(cross_entropy(Z, mixed), 0.503462)
    close(torch.special.entr(TEACHER.softmax(-1)).sum(), 0.665573)
    expected = [-0.270855, 0.212776, 0.058078]
    close(gradient(lambda z: taught_loss(z, TEACHER, Y, 0.3)), expected)
    close(gradient(lambda z: cross_entropy(z, mixed)), expected)


def test_b6_temperature_with_and_without_its_square() -> None:
    def without(z: Tensor) -> Tensor:
        return taught_loss(z, TEACHER, Y, 1.0, 2.0, tau_squared=False)

    def with_square(z: Tensor) -> Tensor:
        return taught_loss(z, TEACHER, Y, 1.0, 2.0)

    close(without(Z), 0.0228542)
    close(with_square(Z), 0.0914167)
    close(gradient(without), [-0.034818, 0.047627, -0.012809])
    close(gradient(with_square), [-0.139273, 0.190509, -0.051236])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_b7_a_shifted_teacher_changes_nothing_and_an_equal_one_has_no_gradient(temperature) -> None:
    shifted = taught_loss(Z, TEACHER + 5.0, Y, 0.3, temperature)
    torch.testing.assert_close(shifted, taught_loss(Z, TEACHER, Y, 0.3, temperature))
    onehot = torch.tensor([1.0, 0.0, 0.0])
    close(gradient(lambda z: taught_loss(z, Z, Y, 0.3, temperature)), (0.7 * (P - onehot)).tolist())


@pytest.mark.parametrize(("num_classes", "gap"), [(2, 2.94444), (3, 3.33220)])
def test_b9_smoothing_has_an_optimum_and_cross_entropy_has_none(num_classes, gap) -> None:
    def trained(alpha: float, steps: int) -> float:
        logits = torch.zeros(num_classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=steps, tolerance_change=0, lr=0.5)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = label_smoothing_loss(logits, Y, alpha)
            loss.backward()
            return loss

        optimizer.step(closure)
        return float((logits[0] - logits[1]).detach())

    assert trained(0.1, 100) == pytest.approx(gap, abs=1e-3)
    assert gap + 1 < trained(0.0, 15) < trained(0.0, 30)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("gold", [0.0, 0.3, 1.0])
def test_the_linear_form_is_the_mixtures_cross_entropy_by_its_definition(num_classes, gold) -> None:
    logits, labels = 2 * torch.randn(3, num_classes), torch.randint(num_classes, (3,))
    found = tf_reg_loss(logits, labels, 0.4, gold)
    for i, label in enumerate(labels.tolist()):
        regularizing = gold_target(labels[i], num_classes, gold).tolist()
        expected = by_definition(logits[i], label, 0.4, regularizing)
        assert found[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_there_is_one_value_per_prediction_whatever_the_leading_axes() -> None:
    logits, labels = torch.randn(2, 4, 3), torch.randint(3, (2, 4))
    for loss in (label_smoothing_loss, tf_reg_loss, teacher_free_code_loss):
        found = loss(logits, labels)
        assert found.shape == (2, 4)
        torch.testing.assert_close(found[1, 2], loss(logits[1, 2], labels[1, 2]))


def test_masked_logits_are_no_classes() -> None:
    logits, mask = torch.tensor([[1.0, 0.0, -1.0, -1e4]]), torch.tensor([[True, True, True, False]])
    labels = torch.tensor([0])
    torch.testing.assert_close(label_gap(logits, labels, mask), label_gap(logits[:, :3], labels))
    only = torch.tensor([[True, False, False, False]])
    assert label_gap(logits, labels, only).item() == 1.0  # nothing to be above


def test_a_certain_target_has_no_entropy() -> None:
    assert gold_entropy(1.0, 3) == 0.0
    torch.testing.assert_close(tf_reg_loss(Z, Y, 0.5, 1.0, form="kl"), cross_entropy(Z, Y))


def test_half_precision_logits_are_computed_in_full() -> None:
    logits, labels = (20 * torch.randn(4, 3)).bfloat16(), torch.randint(3, (4,))
    found = label_smoothing_loss(logits, labels)
    torch.testing.assert_close(found, label_smoothing_loss(logits.float(), labels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: label_smoothing_loss(Z, Y, 1.5), r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: label_smoothing_loss(Z, Y, 0.1, "some"), "over must be all or wrong, got 'some'"),
        (lambda: tf_reg_loss(Z, Y, 0.1, -0.5), r"gold must be in \[0, 1\], got -0.5"),
        (lambda: tf_reg_loss(Z, Y, form="exact"), "form must be mixture or kl, got 'exact'"),
        (lambda: tf_reg_loss(Z[:1], Y), "needs at least 2 of them, got 1"),
        (lambda: softened_gold(0.9, 3, 0.0), "temperature must be positive, got 0.0"),
        (lambda: taught_loss(Z, Z, Y, temperature=-1.0), "temperature must be positive, got -1.0"),
    ],
)
def test_a_value_outside_of_its_range_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
