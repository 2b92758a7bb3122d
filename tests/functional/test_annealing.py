"""Annealed distances and the hinge: hand-computed tables, gradients, masks, the quantile rule."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_kd.functional.annealing import (
    annealed_logit_mse,
    centered,
    hinge,
    quantile_margin,
    smoothing_factor,
)

TEACHER = torch.tensor([[2.0, -1.0, 0.0], [0.5, 1.5, -3.0]])
STUDENT = torch.tensor([[0.3, -0.1, 0.0], [0.0, 0.4, -0.6]])
SUMS = {4: (0.0625, 0.03875), 3: (0.65, 0.995), 2: (1.8625, 3.38875), 1: (3.7, 7.22)}
"""Squared distances at every temperature for a highest one of 4."""


def distances(temperature, reduction="sum", student=STUDENT) -> Tensor:
    return annealed_logit_mse(
        student, TEACHER, smoothing_factor(float(temperature), 4), reduction=reduction
    )


# annealing_kd.md, section 8


@pytest.mark.parametrize("temperature", SUMS)
def test_the_distances_are_those_of_the_table(temperature) -> None:
    expected = torch.tensor(SUMS[temperature])
    torch.testing.assert_close(distances(temperature), expected)
    torch.testing.assert_close(distances(temperature, "mean"), expected / 3)


def test_a1_the_ends_are_a_fraction_of_the_teacher_and_the_teacher_itself() -> None:
    warmest = annealed_logit_mse(TEACHER / 4, TEACHER, smoothing_factor(4.0, 4))
    assert warmest.tolist() == [0, 0]
    assert distances(1).mean().item() == pytest.approx(5.46)
    assert distances(1, "mean").mean().item() == pytest.approx(1.82)


def test_a2_the_gradient_of_the_first_stage() -> None:
    gradients = {}
    for reduction in ("sum", "mean"):
        student = STUDENT.clone().requires_grad_()
        distances(4, reduction, student).mean().backward()
        gradients[reduction] = student.grad
    expected = torch.tensor([[-0.2, 0.15, 0.0], [-0.125, 0.025, 0.15]])
    torch.testing.assert_close(gradients["sum"], expected)
    torch.testing.assert_close(gradients["mean"], expected / 3)


def test_a4_the_best_linear_student_is_scaled_like_the_teacher() -> None:
    inputs = torch.randn(30, 4, dtype=torch.float64)
    answers = torch.randn(30, 3, dtype=torch.float64)
    best = torch.linalg.lstsq(inputs, answers).solution
    scaled = torch.linalg.lstsq(inputs, 0.3 * answers).solution
    torch.testing.assert_close(scaled, 0.3 * best, rtol=0, atol=1e-15)
    weight = scaled.float().requires_grad_()  # and there the annealed distance is flat
    loss = annealed_logit_mse(inputs.float() @ weight, answers.float(), 0.3).mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() < 1e-6


def test_a11_masked_logits_do_not_count() -> None:
    mask = torch.tensor([[[True, True, False]], [[True, False, False]]])  # [b, 1, l] of [b, 2, l]
    student, teacher = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    wild = torch.where(mask, student, 1e6)
    for reduction in ("sum", "mean"):
        clean = annealed_logit_mse(student, teacher, 0.5, mask, reduction)
        assert torch.equal(clean, annealed_logit_mse(wild, teacher, 0.5, mask, reduction))
        assert torch.equal(
            clean,
            annealed_logit_mse(student, torch.where(mask, teacher, 1e6), 0.5, mask, reduction),
        )
    expected = (student[1, :, 0] - 0.5 * teacher[1, :, 0]).square()
    torch.testing.assert_close(annealed_logit_mse(student, teacher, 0.5, mask)[1], expected)
    torch.testing.assert_close(
        centered(wild, mask)[0, :, :2], student[0, :, :2] - student[0, :, :2].mean(-1, True)
    )


def test_the_factor_is_a_straight_line_and_not_one_over_the_temperature() -> None:
    assert smoothing_factor(5.0, 10) == pytest.approx(0.6)
    assert smoothing_factor(1.0, 1) == 1
    assert smoothing_factor(-2.0, 10) == pytest.approx(1.3)  # where the released rule ends


def test_half_precision_logits_are_compared_in_full_precision() -> None:
    student, teacher = (100 * STUDENT).half(), (100 * TEACHER).half()
    got = annealed_logit_mse(student, teacher, 0.7)
    assert got.dtype == torch.float32
    assert torch.equal(got, annealed_logit_mse(student.float(), teacher.float(), 0.7))
    assert hinge(got.half(), 1.0).dtype == torch.float32


def test_centered_logits_forget_a_constant_and_nothing_else() -> None:
    torch.testing.assert_close(centered(STUDENT + 7), centered(STUDENT))
    assert centered(STUDENT).sum(-1).abs().max() < 1e-6
    torch.testing.assert_close(centered(STUDENT).softmax(-1), STUDENT.softmax(-1))


# continuation_kd.md, section 8


@pytest.mark.parametrize(
    ("temperature", "margin", "per_sample", "sample_level", "batch_level"),
    [
        (4, 1.0, (0.0, 0.0), 0.0, 0.0),
        (3, 1.0, (0.15, 0.495), 0.3225, 0.3225),
        (3, 1.6, (0.0, 0.195), 0.0975, 0.0225),
        (1, 2.0, (1.7, 5.22), 3.46, 3.46),
    ],
)
def test_c1_the_hinge_is_that_of_the_table(
    temperature, margin, per_sample, sample_level, batch_level
) -> None:
    effective = margin * smoothing_factor(float(temperature), 4)
    left = hinge(distances(temperature), effective)
    torch.testing.assert_close(left, torch.tensor(per_sample))
    assert left.mean().item() == pytest.approx(sample_level, abs=1e-6)
    assert hinge(distances(temperature).mean(), effective).item() == pytest.approx(
        batch_level, abs=1e-6
    )


@pytest.mark.parametrize("temperature", SUMS)
def test_c1_without_a_margin_the_hinge_is_the_distance(temperature) -> None:
    assert torch.equal(hinge(distances(temperature), 0.0), distances(temperature))


def test_c2_the_whole_loss_and_its_gradient_inside_and_outside_the_tube() -> None:
    student, labels = STUDENT.clone().requires_grad_(), torch.tensor([0, 1])
    hard = cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(hard.detach(), torch.tensor([0.880099, 0.712067]))
    loss = 0.25 * hard.mean() + 0.75 * hinge(distances(3, student=student), 1.6 * 0.5).mean()
    assert loss.item() == pytest.approx(0.272146, abs=1e-6)
    loss.backward()
    expected = [[-0.073157, 0.034751, 0.038406], [-0.146390, -0.326171, 0.697562]]
    torch.testing.assert_close(student.grad, torch.tensor(expected), rtol=0, atol=2e-6)


def test_c7_dead_start_begins_where_the_margin_reaches_the_norm_over_the_temperature() -> None:
    teacher = torch.tensor([[4.0, -2.0]])  # squared norm 20
    factor = smoothing_factor(10.0, 10)
    untrained = annealed_logit_mse(torch.zeros(1, 2), teacher, factor, reduction="sum")
    assert hinge(untrained, 2.0 * factor).item() == pytest.approx(0, abs=1e-7)
    assert hinge(untrained, 1.9 * factor).item() == pytest.approx(0.01, abs=1e-6)
    assert quantile_margin(torch.tensor([20.0]), 10) == pytest.approx(2.0)


# the rule for the margin, which is ours


@pytest.mark.parametrize("annealed", [True, False])
@pytest.mark.parametrize("quantile", [0.1, 0.5])
def test_the_quantile_is_the_share_of_examples_that_start_inside_the_tube(
    annealed, quantile
) -> None:
    teacher, factor = 3 * torch.randn(501, 3), smoothing_factor(8.0, 8)
    norms = annealed_logit_mse(torch.zeros_like(teacher), teacher, reduction="sum")
    margin = quantile_margin(norms, 8, annealed, quantile)
    untrained = annealed_logit_mse(torch.zeros_like(teacher), teacher, factor, reduction="sum")
    left = hinge(untrained, margin * factor if annealed else margin)
    assert (left <= 1e-6).float().mean().item() == pytest.approx(quantile, abs=0.005)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: smoothing_factor(1.0, 0), "max_temperature must be at least 1, got 0"),
        (lambda: smoothing_factor(5.0, 4), "at most max_temperature=4, got 5.0"),
        (lambda: hinge(torch.ones(1), -0.1), "margin must be at least 0, got -0.1"),
        (lambda: quantile_margin(torch.ones(0), 4), "at least one of the teacher's answers"),
        (lambda: quantile_margin(torch.ones(3), 4, quantile=1.1), r"in \[0, 1\], got 1.1"),
    ],
)
def test_nonsense_is_refused_with_the_value(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
