"""What an averaging has to find out before it can begin: the network, its optimizer, the length."""

import math
from collections.abc import Callable, Mapping

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = [
    "network_of",
    "optimizer_of",
    "planned_length",
    "require_finite",
    "require_saved",
    "require_whole_weights",
    "was_skipped",
]


def network_of(pl_module: L.LightningModule, target: str) -> nn.Module:
    """The module of a dotted name, the whole module for an empty one.

    Raises:
        ValueError: It is not there; the message names what is.
    """
    try:
        return pl_module.get_submodule(target)
    except AttributeError:
        names = ", ".join(name for name, _ in pl_module.named_children()) or "no modules at all"
        raise ValueError(
            f"{type(pl_module).__name__} has no module {target!r} to average; it has {names}; give "
            "one of them as target, or an empty one for the whole"
        ) from None


def optimizer_of(trainer: L.Trainer, network: nn.Module, target: str) -> Optimizer:
    """The optimizer that trains a network: of several, the one with most of its weights.

    Raises:
        ValueError: There is none.
    """
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    shares = [
        sum(p.numel() for g in o.param_groups for p in g["params"] if id(p) in trained)
        for o in trainer.optimizers
    ]
    if not any(shares):
        raise ValueError(
            f"no optimizer trains a weight of {target or 'the module'!r}, so there is nothing to "
            "average; name the network that is trained as target"
        )
    return trainer.optimizers[shares.index(max(shares))]


def planned_length(trainer: L.Trainer, pl_module: L.LightningModule, unit: str) -> int:
    """Updates of the network (``step``), or epochs, of the whole training.

    Raises:
        ValueError: Nobody can know.
    """
    total: float
    if unit == "epoch":
        total = _epochs(trainer)
    elif pl_module.automatic_optimization:
        total = trainer.estimated_stepping_batches
    else:
        planned: Callable[[], int] | None = getattr(pl_module, "planned_student_updates", None)
        total = math.inf if planned is None else planned()
    if math.isinf(total):
        raise ValueError(
            f"nobody knows how many {unit}s this training has, of which start_fraction is a share; "
            "set start_after, or trainer.max_epochs (under manual optimization, give the module a "
            "method planned_student_updates())"
        )
    return int(total)


def _epochs(trainer: L.Trainer) -> float:
    limits = [math.inf]
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs)
    if trainer.max_steps >= 0 and math.isfinite(trainer.num_training_batches):
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        limits.append(trainer.max_steps // steps)  # only whole ones end
    return min(limits)


def require_whole_weights(trainer: L.Trainer) -> None:
    """Refuse a strategy that shards weights, and checkpoints that no callback can complete.

    Raises:
        ValueError: There is one; the message names the way out.
    """
    for kind in type(trainer.strategy).__mro__:
        if kind.__name__ in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"):
            raise ValueError(
                f"{kind.__name__} keeps weights or their updates in pieces, which StudentAveraging "
                "cannot average; use the ddp strategy or one device"
            )
    for callback in vars(trainer)["callbacks"]:
        if isinstance(callback, ModelCheckpoint) and callback.save_weights_only:
            raise ValueError(
                "a ModelCheckpoint with save_weights_only=True would write the raw weights instead "
                "of the average, because Lightning asks no callback then; leave the option out"
            )


def require_saved(pl_module: L.LightningModule, network: nn.Module, prefix: str) -> None:
    """Refuse weights that a checkpoint would hold under other names, or not at all.

    Raises:
        ValueError: There is one.
    """
    state = pl_module.state_dict()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and prefix + name not in state:
            raise ValueError(
                f"{prefix + name} is trained, but {type(pl_module).__name__}.state_dict() has no "
                "such name, so that a checkpoint cannot hold its average; save weights by their "
                "names"
            )


def require_finite(weights: Mapping[str, Tensor], updates: int) -> None:
    """Refuse to write weights of which one is not finite: an average never recovers from it.

    Raises:
        FloatingPointError: One is not.
    """
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise FloatingPointError(
                f"the weight {name} is not finite after update {updates}; the last checkpoint is "
                "kept: resume from it with a lower learning rate or gradient clipping"
            )


def was_skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler let an optimizer step that then left the weights alone."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
