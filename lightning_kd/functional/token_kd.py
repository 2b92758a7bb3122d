r"""Distillation over a whole vocabulary, a few rows at a time, unreduced: one value per token.

A divergence of two softmaxes needs several tensors as large as the logits; here only a chunk of
rows has them. What a student's gradient needs is computed again in the backward pass. Letters in
shapes: ``n`` tokens, ``V`` vocabulary, ``d`` and ``D`` hidden widths of student and teacher.
"""

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_kd.functional.linear_cross_entropy import (
    CHUNK_SIZE,
    chunks,
    compute_dtype,
    sum_dtype,
    without_autocast,
)

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
DIVERGENCES: tuple[str, ...] = get_args(Divergence)


def token_kd_loss(
    student: Float[Tensor, "n V"],
    teacher: Float[Tensor, "n V"],
    divergence: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
) -> Float[Tensor, " n"]:
    r"""Divergence of the teacher's and the student's next-token distributions, times τ².

    With :math:`p = softmax(z_t / \tau)`, :math:`q = softmax(z_s / \tau)` it is ``forward_kl``
    :math:`KL(p \| q)` (as `kd_loss`), ``reverse_kl`` :math:`KL(q \| p)`, or ``jsd``
    :math:`\beta KL(p \| m) + (1 - \beta) KL(q \| m)` with :math:`m = \beta p + (1 - \beta) q`.
    Source: Agarwal et al. (ICLR 2024), arXiv 2306.13649, Eq. 1. Computed in fp32 at least.

    Args:
        student: Logits.
        teacher: Logits; constants, no gradient reaches them.
        divergence: Which of the three.
        beta: Of ``jsd``, in (0, 1); near 0 it is β times the forward KL, near 1 it is 1 - β times
            the reverse.
        temperature: τ > 0.
        chunk_size: Rows that are worked on at once.

    Raises:
        ValueError: An unknown divergence, or a value out of its range.

    >>> token_kd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -1.0]]))
    tensor([0.3278])
    """
    _check(divergence, beta, temperature, chunk_size)
    settings = (divergence, beta, temperature, chunk_size)
    losses: Tensor = _TokenKD.apply(student, None, teacher, None, settings)  # type: ignore[no-untyped-call]
    return losses


def linear_kd_loss(
    student: Float[Tensor, "n d"],
    student_weight: Float[Tensor, "V d"],
    teacher: Float[Tensor, "n D"],
    teacher_weight: Float[Tensor, "U D"],
    divergence: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
) -> Float[Tensor, " n"]:
    """`token_kd_loss` of the logits that two heads give, which are never in memory as a whole.

    Args:
        student: States after the final norm.
        student_weight: Of the student's head, without bias.
        teacher: States after the final norm; constants, as is their head.
        teacher_weight: Of the teacher's head, the same tokens in the same rows
            (`lightning_kd.vocabulary.common_vocabulary`).
        divergence: See `token_kd_loss`.
        beta: See `token_kd_loss`.
        temperature: See `token_kd_loss`.
        chunk_size: Rows whose logits are in memory at once.

    Raises:
        ValueError: See `token_kd_loss`; or heads of different vocabularies.

    >>> one, head = torch.ones(1, 1), torch.tensor([[1.0], [-1.0]])
    >>> linear_kd_loss(one, 0 * head, one, head)
    tensor([0.3278])
    """
    _check(divergence, beta, temperature, chunk_size)
    if student_weight.shape[0] != teacher_weight.shape[0]:
        raise ValueError(
            f"the student's head has {student_weight.shape[0]} rows, the teacher's "
            f"{teacher_weight.shape[0]}; cut both to lightning_kd.vocabulary.common_vocabulary"
        )
    settings = (divergence, beta, temperature, chunk_size)
    heads = [
        value.to(compute_dtype(value))
        for value in (student, student_weight, teacher, teacher_weight)
    ]
    losses: Tensor = _TokenKD.apply(*heads, settings)  # type: ignore[no-untyped-call]
    return losses


def _check(divergence: str, beta: float, temperature: float, chunk_size: int) -> None:
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}")
    if divergence == "jsd" and not 0 < beta < 1:
        raise ValueError(
            f"beta must be above 0 and below 1, got {beta}; at the ends the divergence is "
            "forward_kl and reverse_kl"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")


class _TokenKD(torch.autograd.Function):
    """Of logits, where the heads are None, or of states."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        student: Tensor,
        student_weight: Tensor | None,
        teacher: Tensor,
        teacher_weight: Tensor | None,
        settings: tuple[str, float, float, int],
    ) -> Tensor:
        losses = student.new_empty(student.shape[0], dtype=sum_dtype(student.dtype))
        for rows in chunks(student.shape[0], settings[3]):
            log_q = _log_softmax(student[rows], student_weight, settings[2])
            log_p = _log_softmax(teacher[rows], teacher_weight, settings[2])
            losses[rows] = _divergence_(log_q, log_p, *settings[:2])
        ctx.save_for_backward(student, student_weight, teacher, teacher_weight)
        ctx.settings = settings
        return losses.mul_(settings[2] ** 2)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(  # type: ignore[override]  # of what the decorators make less is known
        ctx: Any, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        student, student_weight, teacher, teacher_weight = ctx.saved_tensors
        divergence, beta, temperature, size = ctx.settings
        of_student = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:  # fp32: bf16 sums of many chunks would lose bits
            of_weight = torch.zeros_like(student_weight, dtype=sum_dtype(student_weight.dtype))
        for rows in chunks(student.shape[0], size):
            slope = _log_softmax(student[rows], student_weight, temperature)
            log_p = _log_softmax(teacher[rows], teacher_weight, temperature)
            _divergence_(slope, log_p, divergence, beta, slope=True)
            slope.mul_(upstream[rows, None] * temperature)
            if student_weight is None:
                if of_student is not None:
                    of_student[rows] = slope
                continue
            slope = slope.to(student_weight.dtype)
            if of_student is not None:
                torch.mm(slope, student_weight, out=of_student[rows])
            if of_weight is not None:
                of_weight += slope.t() @ student[rows]
        if of_weight is not None:
            of_weight = of_weight.to(student_weight.dtype)
        return of_student, of_weight, None, None, None


def _log_softmax(rows: Tensor, weight: Tensor | None, temperature: float) -> Tensor:
    """A new tensor that may be overwritten."""
    scores = rows if weight is None else rows @ weight.t()
    # log_softmax makes a tensor of its own; another one is needed only for another temperature.
    if temperature != 1:
        scores = scores.to(sum_dtype(scores.dtype)) / temperature
    return torch.log_softmax(scores, -1, dtype=sum_dtype(scores.dtype))


def _divergence_(
    log_q: Tensor, log_p: Tensor, divergence: str, beta: float, *, slope: bool = False
) -> Tensor:
    """The value ``[c]``; both arguments are overwritten, ``log_q`` with the slope when asked for.

    The slope is in the logits :math:`z_s / τ`.
    """
    vecdot = torch.linalg.vecdot
    if divergence == "forward_kl":
        p = log_p.exp()
        forward: Tensor = vecdot(p, log_p.sub_(log_q))
        if slope:
            log_q.exp_().sub_(p)
        return forward
    q, of_teacher = log_q.exp(), None
    if divergence == "jsd":
        mixture = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        of_teacher = vecdot(log_p.exp(), log_p.sub_(mixture))
        log_p = mixture
    value: Tensor = vecdot(q, log_q.sub_(log_p))  # the student's divergence, from p or from m
    if slope:
        log_q.sub_(value[:, None]).mul_(q)
        if of_teacher is not None:
            log_q.mul_(1 - beta)
    return value if of_teacher is None else beta * of_teacher + (1 - beta) * value


__all__ = ["DIVERGENCES", "Divergence", "linear_kd_loss", "token_kd_loss"]
