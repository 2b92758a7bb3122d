"""Peak memory of a training, by part, before anything is loaded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lightning_kd.planning.trace import Moment, trace
from lightning_kd.planning.training import Training

FRAMEWORK = {"cuda": 600 * 10**6, "cpu": 0}
"""Bytes of the CUDA context, cuBLAS's workspace and what the allocator cannot fill. An estimate:
it differs by card and driver (contexts are 0.3 to 0.5 GB), and no model's config says it."""

_SMALL_STATE = 4096
"""Weights with fewer entries have moments in 32 bits in bitsandbytes' 8-bit optimizers."""


@dataclass(frozen=True)
class Plan:
    """What a training needs.

    Attributes:
        training: What was planned.
        parts: Bytes by name, at the fullest moment of a step.
        pageable: Of these, bytes that a paged optimizer can move to the host.
    """

    training: Training
    parts: Mapping[str, int]
    pageable: int = 0

    @property
    def total(self) -> int:
        """Peak bytes."""
        return sum(self.parts.values())

    def free(self, memory: int) -> int:
        """What is left of ``memory`` bytes; negative: what is missing."""
        return memory - self.total


def plan_memory(training: Training) -> Plan:
    """Peak memory of a training's steps on one device.

    Weights, gradients and moments are counted exactly. What one step makes besides is taken from
    the step itself, on tensors without values (`lightning_kd.planning.trace`).
    The first step is not the largest: the plan has the moments that it leaves behind. What loading
    a checkpoint needs for a moment is not in it, and neither is evaluation, which keeps nothing for
    a backward pass.

    Args:
        training: Model, method, batch and precision.

    Raises:
        ValueError: The model has no layers of the wanted kind, or none of the wanted name.

    >>> from transformers import LlamaConfig
    >>> config = LlamaConfig(
    ...     vocab_size=64,
    ...     hidden_size=8,
    ...     intermediate_size=16,
    ...     num_hidden_layers=1,
    ...     num_attention_heads=2,
    ... )
    >>> plan = plan_memory(Training(student=config, length=4, device="cpu"))
    >>> plan.parts["weights, float32"], plan.parts["optimizer"]
    (6768, 13552)
    """
    found = trace(training)
    moment = max(found.fullest, key=sum)
    kept = min(found.kept.activations, moment.activations)
    parts = dict(found.parts)
    moments = optimizer_bytes(training, found.trainable)
    whole = sum(numel * size for numel, size in found.trainable)
    gradients = moment.gradients
    stepping = whole if training.fused else 2 * whole
    if stepping > moment.total:  # a tiny batch: the optimizer's step is the fullest moment
        kept, gradients, moment = 0, whole, Moment(stepping - whole, whole, 0)
    parts["gradients"] = round(gradients)
    parts["optimizer"] = moments
    parts["average"] = whole if training.averaged else 0
    parts["activations"] = round(kept)
    parts["logits"] = round(moment.logits)
    parts["working memory"] = round(moment.activations - kept)
    parts["framework (estimate)"] = FRAMEWORK[training.device]
    parts = {name: size for name, size in parts.items() if size}
    return Plan(training, parts, moments if training.paged else 0)


def optimizer_bytes(training: Training, trainable: Iterable[tuple[int, int]]) -> int:
    """Bytes that an optimizer keeps between steps.

    Args:
        training: Names the optimizer.
        trainable: Number of entries of each weight that trains, and bytes of an entry.

    >>> from lightning_kd.planning.training import Training
    >>> optimizer_bytes(Training(student=None), [(1000, 2)])
    4004
    """
    kind, total = training.optimizer, 0
    for numel, itemsize in trainable:
        if kind == "adamw":
            total += 2 * numel * itemsize + 4  # and the number of steps
        elif kind == "sgd_momentum":
            total += numel * itemsize
        elif kind == "adamw_8bit" and numel >= _SMALL_STATE:
            total += 2 * (numel + 4 * -(-numel // 256))
        elif kind != "sgd":
            total += 2 * 4 * numel
    return total


LIMIT = 1024
"""Examples of one forward pass beyond which nobody looks."""


def largest_batch(training: Training, memory: int, *, limit: int = LIMIT) -> int:
    """Most examples of one forward pass that fit into ``memory`` bytes; 0: not even one.

    The need grows with the batch, ever faster or evenly, so that a straight line through two sizes
    shows where to look.

    Args:
        training: Its own batch size does not matter.
        memory: Bytes.
        limit: Look no further.
    """

    def needs(size: int) -> int:
        if size not in known:
            known[size] = plan_memory(replace(training, batch_size=size)).total
        return known[size]

    known: dict[int, int] = {}
    fits, too_many = 0, limit + 1
    guess = 1
    while fits + 1 < too_many:
        if needs(guess) <= memory:
            fits = guess
        else:
            too_many = guess
        if guess == 1 and fits:
            guess = min(2, limit)
            continue
        low, high = sorted(known)[-2:] if len(known) > 1 else (1, 1)
        slope = (needs(high) - needs(low)) / max(high - low, 1)
        line = high + int((memory - needs(high)) // slope) if slope > 0 else limit
        guess = min(max(line, fits + 1), too_many - 1)
    return fits


__all__ = ["FRAMEWORK", "LIMIT", "Plan", "largest_batch", "optimizer_bytes", "plan_memory"]
