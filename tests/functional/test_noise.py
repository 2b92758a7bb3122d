"""Label noise in closed form: the numbers of the acceptance checks 1 to 8."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from lightning_kd.functional import kd_loss
from lightning_kd.functional.noise import (
    blended_loss,
    draw_noisy_labels,
    forward_loss,
    gce_loss,
    keep_rate,
    mae_loss,
    noise_matrix,
    relabel,
    sce_loss,
    small_loss,
)

HALF = torch.tensor([0.9, 0.1]).log()
RIGHT, WRONG = torch.tensor(0), torch.tensor(1)


def near(left: torch.Tensor, right: float, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(left.double(), torch.tensor(right).double(), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("kind", "rate", "diagonal", "next_one", "other"),
    [
        ("symmetric", 0.3, 0.7, 0.15, 0.15),
        ("uniform", 0.3, 0.8, 0.1, 0.1),
        ("pair", 0.3, 0.7, 0.3, 0),
    ],
)
def test_check_1_matrices_of_three_classes(kind, rate, diagonal, next_one, other) -> None:
    matrix = noise_matrix(kind, rate, 3)
    for i in range(3):
        assert matrix[i, i] == pytest.approx(diagonal)
        assert matrix[i, (i + 1) % 3] == pytest.approx(next_one)
        assert matrix[i, (i + 2) % 3] == pytest.approx(other)


@pytest.mark.parametrize(("num_classes", "rate"), [(2, 0.20), (3, 0.267), (10, 0.36)])
def test_check_1_uniform_noise_of_40_percent_changes_fewer(num_classes, rate) -> None:
    assert 1 - float(noise_matrix("uniform", 0.4, num_classes)[0, 0]) == pytest.approx(
        rate, abs=5e-4
    )


@settings(deadline=None)
@given(st.sampled_from(["symmetric", "uniform", "pair"]), st.floats(0, 0.49), st.integers(2, 20))
def test_rows_sum_to_one(kind, rate, num_classes) -> None:
    matrix = noise_matrix(kind, rate, num_classes)
    torch.testing.assert_close(matrix.sum(1), torch.ones(num_classes).double())
    assert (matrix >= 0).all()


def test_two_classes_know_one_noise() -> None:
    assert torch.equal(noise_matrix("symmetric", 0.3, 2), noise_matrix("pair", 0.3, 2))


@pytest.mark.parametrize(
    ("kind", "rate", "num_classes", "message"),
    [
        ("symmetric", 0.5, 2, r"at least 0 and below 0\.5 for 2 classes, got 0\.5"),
        ("symmetric", 0.9, 3, r"below 0\.6667 for 3 classes, got 0\.9"),
        ("pair", 0.5, 10, r"below 0\.5 for 10 classes"),
        ("uniform", 1.1, 10, r"at most 1, got 1\.1"),
        ("uniform", -0.1, 10, r"at least 0 .*, got -0\.1"),
        ("symmetric", 0.1, 1, "at least 2 classes, got 1"),
    ],
)
def test_rates_out_of_range_are_named(kind, rate, num_classes, message) -> None:
    with pytest.raises(ValueError, match=message):
        noise_matrix(kind, rate, num_classes)


def test_drawn_labels_follow_the_matrix_row_by_row() -> None:
    matrix = torch.tensor([[0.5, 0.2, 0.3], [0.0, 1.0, 0.0], [0.6, 0.4, 0.0]]).double()
    labels = torch.arange(3).repeat_interleave(20_000)
    draws = torch.rand(60_000, 2, generator=torch.Generator().manual_seed(1)).double()
    drawn = draw_noisy_labels(labels, matrix, draws)
    for label in range(3):
        found = drawn[labels == label].bincount(minlength=3) / 20_000
        torch.testing.assert_close(found.double(), matrix[label], atol=0.011, rtol=0)  # 3 sigma
    assert (drawn[labels == 1] == 1).all()


@pytest.mark.parametrize("kind", ["symmetric", "pair", "uniform"])
def test_a_higher_rate_moves_the_same_labels_to_the_same_classes_and_more(kind) -> None:
    labels = torch.arange(2000) % 4
    draws = torch.rand(2000, 2, generator=torch.Generator().manual_seed(1)).double()
    low, high = (draw_noisy_labels(labels, noise_matrix(kind, r, 4), draws) for r in (0.1, 0.4))
    moved = low != labels
    assert 0 < moved.sum() < (high != labels).sum()
    assert torch.equal(low[moved], high[moved])


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-52])
def test_extreme_draws_stay_in_range(edge) -> None:
    labels = torch.tensor([0, 1, 2])
    draws = torch.full((3, 2), edge, dtype=torch.float64)
    drawn = draw_noisy_labels(labels, noise_matrix("symmetric", 0.3, 3), draws)
    assert (drawn != labels).all() == (edge > 0.5)
    assert drawn.max() <= 2


def test_check_2_a_clean_posterior_of_90_percent_becomes_74() -> None:
    clean = torch.tensor([0.9, 0.1]).double()
    near((clean @ noise_matrix("symmetric", 0.2, 2))[0], 0.74)
    no_signal = noise_matrix("uniform", 1.0, 2)
    near((clean @ no_signal)[0], 0.5)


def test_check_3_the_teachers_gradient_has_the_mean_of_the_labels_and_no_variance() -> None:
    noisy, p = torch.tensor([0.3, 0.7]), 0.6
    logits = torch.tensor([1 - p, p]).log().requires_grad_()

    def gradient(loss):
        return float(torch.autograd.grad(loss, logits)[0][1])

    hard = [gradient(cross_entropy(logits, torch.tensor(y))) for y in (0, 1)]
    mean = float(noisy[0]) * hard[0] + float(noisy[1]) * hard[1]
    variance = sum(float(noisy[y]) * (hard[y] - mean) ** 2 for y in (0, 1))
    assert mean == pytest.approx(p - 0.7, abs=1e-6)
    assert variance == pytest.approx(0.21, abs=1e-6)
    assert gradient(kd_loss(logits, noisy.log())) == pytest.approx(p - 0.7, abs=1e-6)


TABLE = {
    "mae": (mae_loss, 0.1, 0.9),
    "gce": (gce_loss, 0.101569, 1.143534),
    "sce": (lambda z, y: sce_loss(z, y, 1.0, 0.0), 0.105361, 2.302585),
    "sce, reverse": (lambda z, y: sce_loss(z, y, 0.0, 1.0), 0.4, 3.6),
    "sce, both": (lambda z, y: sce_loss(z, y, 0.1, 2.0), 0.0105361 + 0.8, 0.2302585 + 7.2),
    "forward": (
        lambda z, y: forward_loss(z, y, noise_matrix("symmetric", 0.2, 2)), 0.301105, 1.347074
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_check_4_the_table_of_losses(name) -> None:
    loss, right, wrong = TABLE[name]
    near(loss(HALF, RIGHT), right)
    near(loss(HALF, WRONG), wrong)


def test_check_4_the_absolute_error_summed_over_labels_is_a_constant() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    total = sum(mae_loss(logits, torch.full((5,), y)) for y in range(7))
    torch.testing.assert_close(total, torch.full((5,), 6.0))


def test_losses_take_any_leading_axes_and_half_precision() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(4, (2, 3))
    for loss in (mae_loss, gce_loss, sce_loss):
        assert loss(logits, labels).shape == (2, 3)
        assert loss(logits.bfloat16(), labels).dtype == torch.float32


def test_limits_of_the_losses() -> None:
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    reference = cross_entropy(logits, labels, reduction="none")
    identity = torch.eye(4).double()
    torch.testing.assert_close(forward_loss(logits, labels, identity), reference)
    torch.testing.assert_close(gce_loss(logits, labels, 1e-4), reference, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(gce_loss(logits, labels, 1.0), mae_loss(logits, labels))
    with pytest.raises(ValueError, match=r"q must be in \(0, 1\], got 0"):
        gce_loss(logits, labels, 0.0)


def test_a_certain_and_wrong_student_has_a_finite_loss() -> None:
    for loss in (mae_loss, gce_loss, lambda z, y: forward_loss(z, y, torch.eye(2).double())):
        assert loss(torch.tensor([200.0, -200.0]), WRONG).isfinite()


def test_check_5_keep_rate_and_how_many_of_32_that_is() -> None:
    rates = [keep_rate(epoch, 0.4, 10.0) for epoch in (0.0, 5.0, 10.0, 30.0)]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.6])
    counts = [int(small_loss(torch.arange(32.0), rate).sum()) for rate in rates]
    assert counts == [32, 26, 20, 20]


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(0, 100))
def test_small_loss_keeps_the_share_rounded_up(size, percent) -> None:
    kept = int(small_loss(torch.arange(float(size)), percent / 100).sum())
    assert kept == max(1, -(-percent * size // 100))


def test_check_6_each_student_names_its_own_small_losses() -> None:
    ours, peers = torch.tensor([0.1, 2.3, 0.2, 1.5]), torch.tensor([0.3, 0.1, 2.0, 0.2])
    assert small_loss(ours, 0.5).nonzero().flatten().tolist() == [0, 2]
    assert small_loss(peers, 0.5).nonzero().flatten().tolist() == [1, 3]


def test_ties_are_taken_in_order() -> None:
    assert small_loss(torch.zeros(4), 0.5).tolist() == [True, True, False, False]


def test_check_7_soft_refinement_is_a_mixture_and_distillation_up_to_a_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator).double()
    teacher = torch.randn(6, 3, generator=generator).double()
    labels, q = torch.randint(3, (6,), generator=generator), teacher.softmax(-1)
    mixed = blended_loss(logits, labels, q, 0.8)
    hard = cross_entropy(logits.float(), labels, reduction="none")
    soft = -(q * logits.float().log_softmax(-1)).sum(-1)
    torch.testing.assert_close(mixed, 0.2 * hard + 0.8 * soft, atol=1e-7, rtol=1e-7)
    entropy = -(q * q.log()).sum(-1)
    distilled = 0.2 * hard + 0.8 * (kd_loss(logits, teacher) + entropy)
    torch.testing.assert_close(mixed, distilled, atol=1e-6, rtol=1e-6)


def test_check_8_hard_refinement_needs_a_sure_teacher() -> None:
    q = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    labels = torch.tensor([1, 1])
    assert relabel(labels, q, 0.6).tolist() == [0, 1]
    assert relabel(labels, q, 0.8).tolist() == [1, 1]
    assert relabel(labels, q, 1.0).tolist() == [1, 1]
    assert relabel(labels, q, 0.0).tolist() == [0, 1]


def test_reverse_cross_entropy_takes_minus_four_for_the_logarithm_of_zero() -> None:
    probabilities = HALF.exp()
    reverse = -(probabilities * torch.tensor([0.0, -4.0])).sum()
    near(sce_loss(HALF, RIGHT, 0.0, 1.0), float(reverse))
    assert math.isclose(float(reverse), 0.4, abs_tol=1e-6)
