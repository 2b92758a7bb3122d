"""A batch and a loss with the tensors of the real ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_kd.nn import DecoderStack
from lightning_kd.planning.network import Networks
from lightning_kd.planning.training import Training
from lightning_kd.tasks import Image, MultipleChoice, Regression, SpanQA


def make_batch(training: Training) -> dict[str, Tensor]:
    """Inputs and labels of one forward pass, of the shapes that the task has.

    Every example has the full length, and every token of a text is a target: no batch is larger.
    """
    task, size, length = training.task, training.batch_size, training.length
    if isinstance(task, Image):
        pixels = torch.zeros(size, task.num_channels, length, length)
        return {"pixel_values": pixels, "labels": torch.zeros(size, dtype=torch.long)}
    shape = (size, task.num_labels, length) if isinstance(task, MultipleChoice) else (size, length)
    batch = {"input_ids": torch.zeros(shape, dtype=torch.long)}
    if training.has_mask:
        batch["attention_mask"] = torch.ones(shape, dtype=torch.long)
    if training.predicts_tokens:
        batch["labels"] = torch.zeros(size, length, dtype=torch.long)
    elif isinstance(task, SpanQA):
        batch["labels"] = torch.zeros(size, 2, dtype=torch.long)
        batch["answer_mask"] = torch.ones(size, length, dtype=torch.bool)
    else:
        kind = torch.float32 if isinstance(task, Regression) else torch.long
        batch["labels"] = torch.zeros(size, dtype=kind)
    return batch


def objective(training: Training, networks: Networks, batch: dict[str, Tensor]) -> Tensor:
    """The loss against the labels, and against a teacher where there is one."""
    task, student, teacher = training.task, networks.student, networks.teacher
    if training.logit_chunk is not None:
        return _chunked_loss(training, student, batch)
    if task is None:
        loss: Tensor = student(**batch).loss
        return loss
    if training.predicts_tokens:
        logits = _logits(student, batch)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"][:, 1:].flatten())
        if teacher is not None:
            with torch.no_grad():
                answer = _logits(teacher, batch)
            loss = loss + F.kl_div(
                logits.float().log_softmax(-1), answer.float().log_softmax(-1), log_target=True
            )
        return loss
    prediction = task.predict(student, batch)
    loss = task.hard_loss(prediction, batch).mean()
    if teacher is not None:
        with torch.no_grad():
            taught = task.predict(teacher, batch)
        loss = loss + task.soft_loss(prediction, taught, batch).mean()
    return loss


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of a language model before every target, as `lightning_kd.tasks.CausalLM` has them.

    The task finds the places by looking at the labels, of which there is nothing to see here.
    """
    inputs: dict[str, Any] = {k: v for k, v in batch.items() if k != "labels"}
    size, length = batch["labels"].shape
    places = torch.arange(length - 1)
    logits: Tensor = model(**inputs, logits_to_keep=places, use_cache=False).logits
    where = places.expand(size, -1)[..., None].expand(-1, -1, logits.shape[-1])
    return logits.gather(1, where)


class _ChunkedLoss(torch.autograd.Function):
    """The tensors of a loss that multiplies the logits out a chunk at a time, with its gradient."""

    @staticmethod
    @override
    def forward(ctx: Any, weight: Tensor, chunk: int, *states: Tensor) -> Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        rows = min(chunk, states[0].shape[0])
        buffer = weight.new_empty(rows, weight.shape[0], dtype=wide)
        total = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[0] else None
        slope = buffer.to(weight.dtype)
        kept = [torch.empty_like(state) for state in states]
        if total is not None and total.dtype != slope.dtype:
            total.add_(slope.t() @ states[0][:rows])
        ctx.save_for_backward(None if total is None else total.to(weight.dtype), *kept)
        return buffer.sum()

    @staticmethod
    @override
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        weight, *states = (
            None if kept is None else kept * grad.to(kept.dtype) for kept in ctx.saved_tensors
        )
        return weight, None, *states


def _chunked_loss(training: Training, student: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    stack = DecoderStack.of(student)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    hidden = stack.backbone(**inputs, use_cache=False).last_hidden_state
    # The deepest state stands for all exits: they have the same shape.
    states = [stack.norm(hidden)[:, :-1].flatten(0, 1) for _ in range(training.exits)]
    half = training.autocast
    weight = stack.head.weight if half is None else stack.head.weight.to(half)
    states = states if half is None else [state.to(half) for state in states]
    loss: Tensor = _ChunkedLoss.apply(weight, training.logit_chunk, *states)  # type: ignore[no-untyped-call]
    return loss


__all__ = ["make_batch", "objective"]
