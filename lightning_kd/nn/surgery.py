"""Module surgery: find layers by PEFT's ``target_modules`` vocabulary and replace them."""

import difflib
import re
from collections.abc import Callable, Sequence

from torch import nn

from lightning_kd.nn.dynamic_lora import linear_shape


def replace_modules(
    model: nn.Module, names: Sequence[str], make: Callable[[nn.Module], nn.Module]
) -> None:
    """Put ``make(old)`` in the place of each named sub-module, in the order of ``names``."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(model.get_submodule(name)))


def keep_layers(model: nn.Module, layers: int | Sequence[int]) -> None:
    """Cut a transformer to some of its layers, in place: a student out of its teacher.

    Args:
        model: A transformers model.
        layers: A number keeps so many of the first; a list those of these numbers, from 0 and in
            this order (``[0, 2, 4]``: every second of six).

    Raises:
        ValueError: The model has no stack of layers, or not those.
    """
    config = getattr(model, "config", None)
    depth = getattr(config, "num_hidden_layers", None)
    lists = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    name, stack = next(((n, m) for n, m in lists if len(m) == depth), ("", None))
    if stack is None:
        raise ValueError(
            f"{type(model).__name__} has no stack of num_hidden_layers={depth} layers to cut; give "
            "a transformers model, or leave student_layers out"
        )
    wanted = list(range(layers)) if isinstance(layers, int) else list(layers)
    if not wanted or not set(wanted) <= set(range(len(stack))):
        raise ValueError(f"the model has layers 0 to {len(stack) - 1}, got {layers}")
    replace_modules(model, [name], lambda _: nn.ModuleList([stack[i] for i in wanted]))
    configs = [getattr(inner, "config", None) for inner in model.modules()]
    for own in {id(own): own for own in configs if own is not None}.values():
        own.num_hidden_layers = len(wanted)
        if getattr(own, "layer_types", None):
            own.layer_types = [own.layer_types[i] for i in wanted]
    for index, layer in enumerate(model.get_submodule(name).children()):
        for inner in layer.modules():
            if isinstance(getattr(inner, "layer_idx", None), int):
                vars(inner)["layer_idx"] = index  # decoders find their cache by it


def match_linear_layers(
    model: nn.Module,
    target_modules: str | Sequence[str] | None,
    exclude: Sequence[str] = (),
) -> list[str]:
    """Names of the linear layers that PEFT's LoRA would adapt for the same ``target_modules``.

    Args:
        model: A transformers model, or any module.
        target_modules: ``None``: PEFT's choice for the model's architecture (query and value for
            most); ``"all-linear"``: every linear layer outside ``exclude``; a list: names or their
            dotted suffixes; a string: a regular expression on the full name.
        exclude: Sub-modules that stay as they are (a task head), as full names or their dotted
            suffixes, with all that is inside them.

    Raises:
        ValueError: Nothing matches (near names are shown), or the architecture has no default.
    """
    linear = [
        name
        for name, module in model.named_modules()
        if linear_shape(module) is not None
        and not any(f".{head}." in f".{name}." for head in exclude)
    ]
    if target_modules is None:
        target_modules = _default_targets(model)
    if target_modules == "all-linear":
        matched = linear
    elif isinstance(target_modules, str):
        matched = [name for name in linear if re.fullmatch(target_modules, name)]
    else:
        ends = [f".{target}" for target in target_modules]
        matched = [name for name in linear if any(f".{name}".endswith(end) for end in ends)]
    if not matched:
        raise ValueError(_nothing_matched(target_modules, linear))
    return matched


def _default_targets(model: nn.Module) -> str | Sequence[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS

    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in TARGETS:
        raise ValueError(
            f"there is no default target_modules for model type {kind!r}; "
            'name them (for example target_modules="all-linear")'
        )
    return list(TARGETS[kind])


def _nothing_matched(target_modules: str | Sequence[str], linear: Sequence[str]) -> str:
    suffixes = sorted({name.rpartition(".")[2] for name in linear})
    wanted = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    near = [n for want in wanted for n in difflib.get_close_matches(want, suffixes, 3, 0.4)]
    if not near:
        return f"target_modules {target_modules!r} match no linear layer; there are {suffixes}"
    return f"target_modules {target_modules!r} match no linear layer; near names: {near}"


__all__ = ["keep_layers", "match_linear_layers", "replace_modules"]
