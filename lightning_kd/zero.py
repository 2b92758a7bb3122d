"""What ZeRO cut into pieces, whole again: weights, the optimizer's state, the module itself.

Each function that gathers is called on all processes, in one order.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_kd.frozen import Frozen

__all__ = [
    "Untouched",
    "read_optimizer_state",
    "require_element_wise",
    "require_floats",
    "whole_optimizer_state",
]

ELEMENT_WISE = (
    *("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax"),
    *("NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)
"""Of torch: each entry's update asks for nothing but the entry, its gradient and its state."""
Order = Sequence[Sequence[nn.Parameter]]
"""The parameters of each group, as the optimizer was made with them."""


def require_element_wise(optimizer: Optimizer) -> None:
    """Refuse an optimizer that needs whole parameters: ZeRO hands it flat pieces of many.

    Raises:
        ValueError: It is not one of torch's element-wise ones, of DeepSpeed or of bitsandbytes.

    >>> require_element_wise(torch.optim.Adafactor([torch.zeros(1)]))
    Traceback (most recent call last):
    ValueError: ZeRO gives an optimizer flat pieces of parameters, and Adafactor may need them ...
    """
    kind = type(optimizer)
    package = kind.__module__.partition(".")[0]
    if package in ("deepspeed", "bitsandbytes") or (
        package == "torch" and kind.__name__ in ELEMENT_WISE
    ):
        return
    raise ValueError(
        f"ZeRO gives an optimizer flat pieces of parameters, and {kind.__name__} may need them "
        "whole; use AdamW (drop --model.optimizer), or the ddp strategy"
    )


def require_floats(module: nn.Module) -> None:
    """Refuse quantized weights, which ZeRO's stage 3 cannot put back together.

    Raises:
        ValueError: There is one.
    """
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            raise ValueError(
                f"stage 3 of ZeRO cannot distribute {name}, which is quantized "
                f"({parameter.dtype}); use stage 2, which leaves frozen weights whole, or load the "
                "model without bits"
            )


class Untouched:
    """A module as it was before DeepSpeed took it, and the way back.

    Frozen weights (all, in an evaluation) are put back as they were; of trained ones the fp32 value
    is gathered. The originals of frozen ones stay in the host's memory meanwhile.

    Args:
        module: Before any strategy has changed it.
        fits: Whether it is going to be trained.
    """

    def __init__(self, module: nn.Module, *, fits: bool) -> None:
        self.module = module
        self._frozen = dict[nn.Parameter, Tensor]()
        self._trained = dict[nn.Parameter, tuple[int, ...]]()
        self._exact = dict[nn.Parameter, Tensor]()
        self._names = {parameter: set(vars(parameter)) for parameter in _parameters(module)}
        self._buffers = {buffer: buffer.dtype for buffer in module.buffers()}
        for parameter in _parameters(module):
            if fits and parameter.requires_grad:
                self._trained[parameter] = parameter.stride()
                self._exact[parameter] = parameter.data
            elif parameter.is_floating_point():
                self._frozen[parameter] = parameter.data
            if not parameter.is_contiguous():  # which DeepSpeed takes for granted
                parameter.data = parameter.data.contiguous()

    def undo_rounding(self) -> None:
        """Let the fp32 weights behind those in half precision be what they were, not rounded."""
        for parameter, value in self._exact.items():
            if parameter.dtype != value.dtype:
                _distribute(parameter, None, value)
        self._exact = {}

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """A weight in full: its fp32 value, on the CPU."""
        from deepspeed.utils import safe_get_full_fp32_param

        if parameter in self._frozen:
            return self._frozen[parameter]
        found = safe_get_full_fp32_param(parameter) if parameter in self._trained else None
        if found is None:  # quantized, or not in the optimizer
            return parameter.detach().clone()
        value = torch.empty_strided(found.shape, self._trained[parameter], dtype=found.dtype)
        return value.copy_(found)

    def restore(self, engine: Any | None) -> None:
        """Make an ordinary module of it, with whole weights on the CPU; on all processes."""
        trained = {parameter: self.whole(parameter) for parameter in self._trained}
        if engine is not None:
            engine.destroy()
            engine.optimizer = None  # else it is destroyed once more, in the middle of the next fit
        for parameter, value in {**self._frozen, **trained}.items():
            if parameter.is_floating_point():  # or quantized meanwhile, on its way to the device
                parameter.data, parameter.grad = value, None
        for parameter, names in self._names.items():
            for name in set(vars(parameter)) - names:
                delattr(parameter, name)
        for buffer, dtype in self._buffers.items():
            buffer.data = buffer.data.to(dtype)
        for module in self.module.modules():
            _without_deepspeed(module)


def whole_optimizer_state(engine: Any, order: Order, *, keep: bool) -> dict[str, Any]:
    """What the optimizer's ``state_dict`` would be on one process; empty without ``keep``."""
    from deepspeed.utils import safe_get_full_optimizer_state

    inner: Optimizer = engine.optimizer.optimizer
    example: dict[str, Any] = next(iter(inner.state.values()), {})
    if example:
        _link(engine.optimizer)
    state, number, groups = dict[int, dict[str, Any]](), 0, []
    for group, parameters in zip(inner.param_groups, order, strict=True):
        first = number
        for parameter in parameters:
            values = dict[str, Any]()
            for key, value in example.items():
                if isinstance(value, Tensor) and value.dim() > 0:
                    gathered = safe_get_full_optimizer_state(parameter, key)
                    values[key] = gathered.cpu() if keep else None
                else:
                    values[key] = value.clone() if isinstance(value, Tensor) else value
            state[number] = values
            number += 1
        rest = {key: value for key, value in group.items() if key != "params"}
        groups.append({**rest, "params": list(range(first, number))})
    if not keep:
        return {}
    return {"state": state if example else {}, "param_groups": groups}


def read_optimizer_state(engine: Any, order: Order, written: dict[str, Any]) -> None:
    """Distribute what `whole_optimizer_state`, or an optimizer of one process, has written.

    Raises:
        ValueError: It is of other parameters.
    """
    inner: Optimizer = engine.optimizer.optimizer
    ours = [len(parameters) for parameters in order]
    theirs = [len(group["params"]) for group in written["param_groups"]]
    if ours != theirs:
        raise ValueError(
            f"the checkpoint's optimizer has groups of {theirs} parameters, this one of {ours}; "
            "resume with the settings that the run was started with"
        )
    for group, other in zip(inner.param_groups, written["param_groups"], strict=True):
        group.update({key: value for key, value in other.items() if key != "params"})
    numbers = [number for group in written["param_groups"] for number in group["params"]]
    parameters = [parameter for group in order for parameter in group]
    if not written["state"]:
        return
    _make_state(engine, written["state"][numbers[0]])
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, value in written["state"][number].items():
            if isinstance(value, Tensor) and value.dim() > 0:
                _distribute(parameter, key, value)


def _make_state(engine: Any, example: dict[str, Any]) -> None:
    """Entries of the right size for the pieces that this process trains."""
    zero, inner = engine.optimizer, engine.optimizer.optimizer
    third = hasattr(zero, "fp32_partitioned_groups_flat")
    pieces = zero.fp32_partitioned_groups_flat if third else zero.single_partition_of_fp32_groups
    on_device = inner.param_groups[0].get("fused") or inner.param_groups[0].get("capturable")
    for piece in pieces:
        inner.state[piece] = {
            key: torch.zeros_like(piece)
            if isinstance(value, Tensor) and value.dim() > 0
            else value.to(piece.device if on_device else "cpu", copy=True)
            if isinstance(value, Tensor)
            else value
            for key, value in example.items()
        }
    _link(zero)


def _link(zero: Any) -> None:
    """Let stages 1 and 2 find the state of every group; on its own, DeepSpeed finds the first's."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _distribute(parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
    """Set this process's piece of an optimizer's state, or without a key of the fp32 weight."""
    from deepspeed import utils

    if not hasattr(parameter, "ds_id"):
        if key is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, key)
        return
    length: int = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    padded = nn.functional.pad(value.flatten(), (0, length * count - value.numel()))
    piece = padded[rank * length : (rank + 1) * length]
    if key is None:
        utils.safe_set_local_fp32_param(parameter, piece)
    else:
        utils.safe_set_local_optimizer_state(parameter, piece, key)


def _parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """All, and those of hidden networks, which follow the module's device and precision."""
    yield from module.parameters()
    for inner in module.modules():
        if isinstance(inner, Frozen):
            yield from inner.module.parameters()


def _without_deepspeed(module: nn.Module) -> None:
    """Take back what an engine adds to a module and leaves there."""
    for name, value in list(vars(module).items()):
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            for key, hook in list(getattr(value, "items", list)()):
                if str(getattr(hook, "__module__", "")).startswith("deepspeed"):
                    del value[key]
        elif name.startswith(("ds_", "_ds_")) or name in (
            "_external_params",
            "_original_parameters",
            "all_parameters",
            "pre_bwd_fn",
            "post_bwd_fn",
            "applied_pre_backward_ref_cnt",
        ):
            delattr(module, name)
    if type(module._parameters).__module__.startswith("deepspeed"):
        module._parameters = dict(module._parameters.items())
