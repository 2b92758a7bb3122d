"""Hinton's loss against its definition, its limits and its gradient."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_kd.functional import kd_loss


def logits(*shape: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    return scale * torch.randn(*shape), scale * torch.randn(*shape)


def by_definition(student: Tensor, teacher: Tensor, temperature: float) -> float:
    def softmax(z: Tensor) -> np.ndarray:
        powers = np.exp(z.double().numpy() / temperature)
        return powers / powers.sum()

    p, q = softmax(teacher), softmax(student)
    return float(temperature**2 * (p * (np.log(p) - np.log(q))).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_loss_is_the_tempered_divergence_by_its_definition(temperature) -> None:
    student, teacher = logits(3)
    expected = by_definition(student, teacher, temperature)
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )


def test_kd_loss_has_one_value_per_prediction_whatever_the_leading_axes() -> None:
    student, teacher = logits(2, 4, 3)
    loss = kd_loss(student, teacher, 2.0)
    assert loss.shape == (2, 4)
    for i in range(2):
        for j in range(4):
            torch.testing.assert_close(loss[i, j], kd_loss(student[i, j], teacher[i, j], 2.0))


def test_kd_loss_is_zero_between_equals_and_positive_otherwise() -> None:
    student, teacher = logits(50, 3)
    assert kd_loss(student, student.clone()).abs().max() < 1e-6
    assert kd_loss(student, teacher).min() > 0


def test_kd_loss_ignores_a_constant_added_to_all_logits() -> None:
    student, teacher = logits(5, 3)
    shifted = kd_loss(student + 7.0, teacher - 3.0, 2.0)
    torch.testing.assert_close(shifted, kd_loss(student, teacher, 2.0), rtol=1e-4, atol=1e-5)


def test_kd_loss_tends_to_half_the_squared_distance_of_centred_logits_over_classes() -> None:
    student, teacher = (z.double() for z in logits(5, 4))
    difference = (student - student.mean(-1, keepdim=True)) - (
        teacher - teacher.mean(-1, keepdim=True)
    )
    limit = difference.square().sum(-1) / 2 / 4
    torch.testing.assert_close(
        kd_loss(student, teacher, 200.0), limit.float(), rtol=0.03, atol=1e-3
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kd_loss_has_the_gradient_temperature_times_difference_of_distributions(
    temperature,
) -> None:
    student, teacher = logits(4, 3)
    student.requires_grad_()
    kd_loss(student, teacher, temperature).sum().backward()
    difference = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    torch.testing.assert_close(student.grad, (temperature * difference).detach())


def test_kd_loss_does_not_jump_at_temperature_one() -> None:
    student, teacher = logits(6, 3)
    at_one = kd_loss(student, teacher, 1.0)
    for near in (1 - 1e-4, 1 + 1e-4):
        torch.testing.assert_close(kd_loss(student, teacher, near), at_one, rtol=1e-3, atol=1e-4)


def test_kd_loss_stops_no_gradient_of_the_teacher() -> None:
    student, teacher = logits(4, 3)
    teacher.requires_grad_()
    kd_loss(student, teacher).sum().backward()
    assert teacher.grad is not None
    assert teacher.grad.abs().sum() > 0


def test_kd_loss_of_half_precision_logits_is_computed_in_full() -> None:
    student, teacher = (z.bfloat16() for z in logits(4, 3, scale=20.0))
    loss = kd_loss(student, teacher, 4.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, kd_loss(student.float(), teacher.float(), 4.0))


def test_kd_loss_of_a_sure_and_wrong_student_is_finite() -> None:
    loss = kd_loss(torch.tensor([0.0, 1000.0]), torch.tensor([1000.0, 0.0]))
    assert loss.item() == pytest.approx(1000)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_kd_loss_refuses_a_temperature_that_is_not_positive(temperature) -> None:
    with pytest.raises(ValueError, match=f"positive, got {temperature}"):
        kd_loss(*logits(2), temperature)
