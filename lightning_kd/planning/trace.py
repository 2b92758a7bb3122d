"""One training step on fake tensors, and what was alive at its fullest moments.

Formulas per kind of layer would have to know every architecture of transformers, and would still
miss what a loss or an adapter keeps. The step itself knows: it is run on tensors without values, by
the very code that will run it, and storages are counted while they live. What autograd saves alone
(`saved_tensors_hooks`) would miss the largest moment, which is inside the loss, the output head or
a block that is computed again.
"""

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_kd.planning.device import AsOnGPU
from lightning_kd.planning.live import LiveBytes
from lightning_kd.planning.network import Networks, equal_layers, make_networks
from lightning_kd.planning.objective import make_batch, objective
from lightning_kd.planning.training import Training

SHALLOW, DEEPER = 3, 5
"""Layers of two short stacks, from which a deep one is told: what each further layer adds."""


class Moment(NamedTuple):
    """Bytes alive beside weights and optimizer, at one moment."""

    activations: float
    gradients: float
    logits: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


class Trace(NamedTuple):
    """A step.

    Attributes:
        kept: After the forward pass.
        fullest: Of the forward pass, and of each half of the backward pass.
        parts: Bytes of the weights, by what they are.
        trainable: The number of weights that train, their bytes, and how many tensors there are.
    """

    kept: Moment
    fullest: tuple[Moment, ...]
    parts: dict[str, int]
    trainable: list[tuple[int, int]]


def trace(training: Training) -> Trace:
    """A step of a training.

    Blocks that are all alike add the same bytes each, so of a deep stack two short ones are traced
    and continued, which takes a second instead of ten; others are traced whole.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        whole = make_networks(training)
    depth = equal_layers(whole.student)
    sizes, trained = whole.parts(), [(p.numel(), p.element_size()) for p in whole.trainable]
    if depth <= DEEPER + 1:
        kept, fullest = _step(training, None)
        return Trace(kept, fullest, sizes, trained)
    (kept, fullest), (kept_deeper, fullest_deeper) = (
        _step(training, layers) for layers in (SHALLOW, DEEPER)
    )

    def continued(low: Moment, high: Moment) -> Moment:
        added = (depth - SHALLOW) / (DEEPER - SHALLOW)
        return Moment(*(a + (b - a) * added for a, b in zip(low, high, strict=True)))

    pairs = zip(fullest, fullest_deeper, strict=True)
    return Trace(
        continued(kept, kept_deeper), tuple(continued(*pair) for pair in pairs), sizes, trained
    )


def _step(training: Training, layers: int | None) -> tuple[Moment, tuple[Moment, ...]]:
    with ExitStack() as inside:
        inside.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        networks = make_networks(training, layers)
        batch = make_batch(training)
        config: Any = getattr(networks.student, "config", None)
        vocabulary = config.vocab_size if training.predicts_tokens else None
        if training.device == "cuda":
            inside.enter_context(AsOnGPU())
        live = LiveBytes(vocabulary)
        there = [*networks.student.parameters(), *networks.student.buffers(), *batch.values()]
        if networks.teacher is not None:
            there += [*networks.teacher.parameters(), *networks.teacher.buffers()]
        live.ignore(there)
        for parameter in networks.trainable:
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda p: live.is_gradient(p.grad) if p.grad is not None else None
            )
        inside.enter_context(live)
        if training.accumulate > 1 or training.late_zero_grad:
            for parameter in networks.trainable:
                parameter.grad = torch.zeros_like(parameter)
                live.is_gradient(parameter.grad)
        return _forward_and_backward(training, networks, batch, live)


def _forward_and_backward(
    training: Training, networks: Networks, batch: dict[str, Tensor], live: LiveBytes
) -> tuple[Moment, tuple[Moment, ...]]:
    with torch.autocast("cpu", training.autocast, enabled=training.autocast is not None):
        loss = objective(training, networks, batch)
    after = len(live.history)
    kept = Moment(*live.now)
    if training.accumulate == 1:
        for parameter in networks.trainable:
            parameter.grad = None
    torch.autograd.backward(loss)
    middle = (after + len(live.history)) // 2
    bounds = ((0, after), (after - 1, middle), (middle, len(live.history)))
    fullest = (max(map(Moment._make, live.history[a:b]), key=sum, default=kept) for a, b in bounds)
    return kept, tuple(fullest)


__all__ = ["Moment", "Trace", "trace"]
