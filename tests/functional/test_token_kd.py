"""Chunked divergences against dense ones written with PyTorch's own functions."""

import math

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from lightning_kd.functional import kd_loss, linear_kd_loss, token_kd_loss
from lightning_kd.functional.token_kd import DIVERGENCES

TOKENS, WIDTH, TEACHER_WIDTH, VOCABULARY = 11, 6, 9, 53
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def normal(*shape, seed=0, scale=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def dense(student, teacher, divergence, beta, temperature):
    log_q, log_p = (log_softmax(z.double() / temperature, -1) for z in (student, teacher))

    def divergence_of(left, right):  # KL(left || right)
        return kl_div(right, left, reduction="none", log_target=True).sum(-1)

    if divergence == "forward_kl":
        value = divergence_of(log_p, log_q)
    elif divergence == "reverse_kl":
        value = divergence_of(log_q, log_p)
    else:
        m = torch.logsumexp(torch.stack([log_p + math.log(beta), log_q + math.log1p(-beta)]), 0)
        value = beta * divergence_of(log_p, m) + (1 - beta) * divergence_of(log_q, m)
    return value * temperature**2


@every_divergence
@pytest.mark.parametrize("chunk_size", [1, 4, 99])
def test_values_and_gradients_of_logits_are_the_dense_ones(divergence, chunk_size) -> None:
    student = normal(TOKENS, VOCABULARY).requires_grad_()
    teacher = normal(TOKENS, VOCABULARY, seed=1)
    settings = (divergence, 0.3, 1.7)
    ours = token_kd_loss(student, teacher, *settings, chunk_size)
    theirs = dense(student, teacher, *settings)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-5)
    upstream = torch.linspace(-1, 2, TOKENS)  # unreduced: each token its own
    (mine,) = torch.autograd.grad((ours * upstream).sum(), student)
    (other,) = torch.autograd.grad((theirs * upstream).sum(), student)
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


@every_divergence
def test_through_heads_it_is_the_same_as_on_their_logits(divergence) -> None:
    hidden, weight = normal(TOKENS, WIDTH), normal(VOCABULARY, WIDTH, seed=2)
    hidden.requires_grad_(), weight.requires_grad_()
    teacher, head = normal(TOKENS, TEACHER_WIDTH, seed=3), normal(VOCABULARY, TEACHER_WIDTH, seed=4)
    ours = linear_kd_loss(hidden, weight, teacher, head, divergence, 0.8, 3.0, 4)
    theirs = dense(hidden @ weight.t(), teacher @ head.t(), divergence, 0.8, 3.0)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-5)
    upstream = torch.linspace(-1, 2, TOKENS)
    mine = torch.autograd.grad((ours * upstream).sum(), (hidden, weight))
    other = torch.autograd.grad((theirs * upstream).sum(), (hidden, weight))
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-5)


def test_forward_kl_is_the_kd_loss_of_the_house() -> None:
    student, teacher = normal(TOKENS, VOCABULARY), normal(TOKENS, VOCABULARY, seed=1)
    torch.testing.assert_close(
        token_kd_loss(student, teacher, temperature=4.0), kd_loss(student, teacher, 4.0)
    )


@pytest.mark.parametrize(("beta", "end"), [(1e-4, "forward_kl"), (1 - 1e-4, "reverse_kl")])
def test_jsd_tends_to_the_two_divergences(beta, end) -> None:
    student, teacher = normal(TOKENS, VOCABULARY, scale=0.5), normal(TOKENS, VOCABULARY, seed=1)
    small = token_kd_loss(student, teacher, "jsd", beta) / min(beta, 1 - beta)
    torch.testing.assert_close(small, token_kd_loss(student, teacher, end), rtol=0.02, atol=1e-3)


@every_divergence
def test_a_model_does_not_diverge_from_itself(divergence) -> None:
    student = normal(TOKENS, VOCABULARY, scale=30).requires_grad_()  # some probabilities underflow
    loss = token_kd_loss(student, student.detach(), divergence)
    torch.testing.assert_close(loss, torch.zeros(TOKENS), atol=1e-5, rtol=0)
    loss.sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-5, rtol=0)


@every_divergence
def test_the_values_of_two_biased_coins(divergence) -> None:
    p, q, beta = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5]), 0.25
    m = beta * p + (1 - beta) * q
    by_hand = {
        "forward_kl": (p * (p / q).log()).sum(),
        "reverse_kl": (q * (q / p).log()).sum(),
        "jsd": beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum(),
    }
    loss = token_kd_loss(q.log()[None], p.log()[None], divergence, beta)
    torch.testing.assert_close(loss, by_hand[divergence][None])


def test_autocast_multiplies_in_bf16_and_sums_in_fp32() -> None:
    hidden, weight = normal(TOKENS, WIDTH).requires_grad_(), normal(VOCABULARY, WIDTH, seed=2)
    teacher, head = normal(TOKENS, WIDTH, seed=3), normal(VOCABULARY, WIDTH, seed=4)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_kd_loss(hidden, weight, teacher, head, "jsd")
    low = [value.bfloat16() for value in (hidden, weight, teacher, head)]
    theirs = token_kd_loss((low[0] @ low[1].t()).float(), (low[2] @ low[3].t()).float(), "jsd")
    assert ours.dtype is torch.float32
    torch.testing.assert_close(ours, theirs)
    ours.sum().backward()
    assert hidden.grad is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"divergence": "l2"}, "divergence must be one of forward_kl, reverse_kl, jsd, got 'l2'"),
        ({"divergence": "jsd", "beta": 1.0}, "beta must be above 0 and below 1, got 1.0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_errors_name_the_value(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        token_kd_loss(torch.zeros(1, 2), torch.zeros(1, 2), **change)


def test_heads_of_two_vocabularies_are_refused() -> None:
    one = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="student's head has 5 rows, the teacher's 7"):
        linear_kd_loss(one, torch.zeros(5, 2), one, torch.zeros(7, 2))


@every_divergence
def test_gradients_are_right_by_finite_differences(divergence) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, teacher, head = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((4, 3), (7, 3), (4, 2), (7, 2))
    )
    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda h, w: linear_kd_loss(h, w, teacher, head, divergence, 0.3, 2.0, 3), leaves
    )
