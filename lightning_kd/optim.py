"""Optimizers and learning-rate schedules: AdamW as usual, and AdamW for nested adapters."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

LR_SCHEDULES = ("linear", "cosine", "constant", "steps")
IS_MATRIX = "_is_matrix"
"""Attribute of a parameter: whether it had rows and columns when the training was set up."""


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Two parameter groups: matrices decay, biases and norms (vectors and scalars) do not.

    >>> layer = nn.Linear(2, 3)
    >>> [len(group["params"]) for group in decay_groups(layer.named_parameters(), 0.1)]
    [1, 1]
    """
    decays: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for _, parameter in named_parameters:
        if parameter.requires_grad:
            decays[getattr(parameter, IS_MATRIX, parameter.dim() > 1)].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decays[True], "weight_decay": weight_decay},
        {"params": decays[False], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def mark_matrices(module: L.LightningModule) -> None:
    """Let `decay_groups` know matrices that FSDP has made flat by the time of the optimizer.

    Raises:
        ValueError: A quantized weight, where the strategy would flatten it.
    """
    kinds = {kind.__name__ for kind in type(module.trainer.strategy).__mro__}
    for name, parameter in module.named_parameters():
        setattr(parameter, IS_MATRIX, parameter.dim() > 1)
        if not parameter.is_floating_point() and kinds & {"FSDPStrategy", "ModelParallelStrategy"}:
            raise ValueError(
                f"{type(module.trainer.strategy).__name__} cannot distribute {name}, which is "
                f"quantized ({parameter.dtype}); use the ddp strategy or ZeRO's stage 2, or load "
                "the model without bits"
            )


def can_fuse(module: L.LightningModule) -> bool:
    """Whether torch's fused AdamW serves a module, which takes a fifth of the time.

    Not everywhere: there is none for some devices, and Lightning does not let it clip gradients in
    a mixed precision, nor scale a loss.
    """
    trainer = module._trainer
    clips = trainer is not None and trainer.gradient_clip_val and "mixed" in trainer.precision
    scaled = trainer is not None and trainer.precision == "16-mixed"
    return module.device.type in ("cpu", "cuda") and not (scaled or clips)


def nested_groups(
    factors: Iterable[tuple[nn.Parameter, nn.Parameter]],
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Parameter groups for `NestedAdamW`: both factors of each adapter, then whatever else trains.

    Args:
        factors: ``(lora_A [R, d], lora_B [m, R])`` of each adapter.
        named_parameters: All parameters of the module, the factors among them.
        weight_decay: Of matrices.
    """
    first, second = zip(*factors, strict=True)
    ids = {id(parameter) for parameter in (*first, *second)}
    rest = [(name, parameter) for name, parameter in named_parameters if id(parameter) not in ids]
    return [
        {"params": list(first), "component_dim": 0, "weight_decay": weight_decay},
        {"params": list(second), "component_dim": 1, "weight_decay": weight_decay},
        *decay_groups(rest, weight_decay),
    ]


def require_whole_parameters(strategy: object) -> None:
    """Refuse a strategy that flattens or shards parameters: components cannot be told apart there.

    Raises:
        ValueError: It is one; the message names the way out.
    """
    for kind in type(strategy).__mro__:
        if kind.__name__ in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"):
            raise ValueError(
                f"{kind.__name__} hides the components of a parameter from the strict optimizer; "
                "use --model.optimizer_semantics dense, or the ddp strategy"
            )


def check_schedule(schedule: str, warmup_fraction: float) -> None:
    """Raise `ValueError` for what `lr_scheduler` does not know, before anything is loaded."""
    if schedule not in LR_SCHEDULES:
        raise ValueError(f"lr_schedule must be one of {', '.join(LR_SCHEDULES)}, got {schedule!r}")
    if not 0 <= warmup_fraction <= 1:
        raise ValueError(f"warmup_fraction must be between 0 and 1, got {warmup_fraction}")


def lr_scheduler(
    optimizer: Optimizer, schedule: str, warmup_fraction: float, max_steps: int
) -> LRScheduler:
    """Warm up linearly over ``warmup_fraction`` of ``max_steps``, then decay to 0 or stay.

    Args:
        optimizer: Its learning rates are the peaks.
        schedule: ``linear`` or ``cosine`` reach 0 at ``max_steps``; ``constant`` stays at the peak;
            ``steps`` has a tenth of it after half of ``max_steps``, a hundredth after three
            quarters.
        warmup_fraction: In [0, 1]; 0 starts at the peak.
        max_steps: Optimizer steps of the whole run.

    Raises:
        ValueError: Unknown schedule, or a fraction outside [0, 1].
    """
    from transformers import get_scheduler

    check_schedule(schedule, warmup_fraction)
    warmup = round(warmup_fraction * max_steps)
    if schedule == "steps":

        def factor(step: int) -> float:
            passed = (2 * step >= max_steps) + (4 * step >= 3 * max_steps)
            return 0.1**passed * (min(1.0, step / warmup) if warmup else 1.0)

        return LambdaLR(optimizer, factor)
    return get_scheduler(
        "constant_with_warmup" if schedule == "constant" else schedule,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=max_steps,
    )


class NestedAdamW(Optimizer):
    r"""AdamW that leaves the components outside the active set exactly as they are.

    A sliced parameter gets zero gradients outside the slice, and zero is not "none": plain AdamW
    still decays those entries, moves them with old momentum and ages their bias correction. Here a
    component that is not active keeps its value, both moments and its own step count bit for bit;
    an active one takes the AdamW step of a parameter that was only ever updated when active:

    .. math:: w \leftarrow (1 - \eta\lambda) w - \eta \hat m / (\sqrt{\hat v} + \epsilon)

    Parameters of groups without ``component_dim`` (a task head) are updated on every step.

    Args:
        params: Groups; ``component_dim`` (0 or 1) names the axis that counts components.
        active: Called on every step: the slice of active components.
        lr: Learning rate :math:`\eta`.
        betas: Decay of the two moments, each in [0, 1).
        eps: Added to the denominator.
        weight_decay: :math:`\lambda`, decoupled.

    Raises:
        ValueError: A setting is out of its range.
    """

    def __init__(
        self,
        params: Sequence[dict[str, Any]],
        active: Callable[[], slice],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas}")
        self.active = active
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "component_dim": None})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; ``closure`` recomputes the loss, as in every torch optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        active = self.active()
        corrections: dict[tuple[float, ...], tuple[Tensor, Tensor]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                self._update(parameter, group, active, corrections)
        return loss

    def _update(
        self,
        parameter: nn.Parameter,
        group: dict[str, Any],
        active: slice,
        corrections: dict[tuple[float, ...], tuple[Tensor, Tensor]],
    ) -> None:
        grad, state, dim = parameter.grad, self.state[parameter], group["component_dim"]
        if grad is None:
            return
        if not state:
            # Step counts stay on the CPU, as torch's own: a checkpoint restores them there.
            state["step"] = torch.zeros(1 if dim is None else parameter.shape[dim])
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        step: Tensor = state["step"]
        tensors: tuple[Tensor, ...] = parameter.data, grad, state["exp_avg"], state["exp_avg_sq"]
        if dim is not None:
            step = step[active]
            tensors = tuple((t.t() if dim else t)[active] for t in tensors)  # components first
        step += 1
        weight, grad, mean, square = tensors
        beta1, beta2 = group["betas"]
        key = (*step.tolist(), beta1, beta2)
        if key not in corrections:  # the adapters of a model share their history
            age = step.double()  # in single precision 1 - 0.999 is off by 1e-5
            both = torch.stack((1 - beta1**age, (1 - beta2**age).sqrt()))
            first, second = both.float().to(weight.device)
            corrections[key] = first, second
        # [components] against [components, features]; one number for whatever is dense
        first, second = (
            c if dim is None else c.view(-1, *[1] * (weight.dim() - 1)) for c in corrections[key]
        )
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = square.sqrt().div_(second).add_(group["eps"]).mul_(first)
        weight.addcdiv_(mean, denominator, value=-group["lr"])


__all__ = [
    "LR_SCHEDULES",
    "NestedAdamW",
    "can_fuse",
    "check_schedule",
    "decay_groups",
    "lr_scheduler",
    "mark_matrices",
    "nested_groups",
    "require_whole_parameters",
]
