"""Exits of a decoder: the states after some of its blocks, and the model that ends at one.

Exit n is after n blocks, counted from 1. Its logits are ``head(norm(h_n))`` with the model's one
final norm and head, also at the last exit: the states here are raw, unlike transformers'
``hidden_states[-1]``, which is normalized already.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from lightning_kd.functional import linear_cross_entropy_sum
from lightning_kd.functional.linear_cross_entropy import chunks
from lightning_kd.nn.decoder_stack import DecoderStack
from lightning_kd.nn.surgery import keep_layers

EXITS_FIELD = "sorted_exits"
"""What a truncated model's config calls the exits it was trained with."""


def check_exits(exits: Sequence[int], depth: int) -> list[int]:
    """The exits themselves.

    Raises:
        ValueError: None at all, repeated or unordered ones, or some outside 1 to ``depth``.

    >>> check_exits([2, 4], depth=4)
    [2, 4]
    """
    wanted = list(exits)
    for number in wanted:
        if isinstance(number, bool) or not 1 <= number <= depth:
            raise ValueError(f"the model has exits 1 to {depth}, got {number}")
    if not wanted or wanted != sorted(set(wanted)):
        raise ValueError(
            f"exits must be ascending numbers of blocks from 1 to {depth}, got {wanted}"
        )
    return wanted


def exit_shares(exits: Sequence[int], loss: str) -> list[float]:
    """What each exit's loss is multiplied by: 1 for ``sum``, in proportion to ``weighted`` depth.

    All others sum to 1 and are the same.

    >>> exit_shares([1, 3], "mean"), exit_shares([1, 3], "weighted")
    ([0.5, 0.5], [0.25, 0.75])
    """
    match loss:
        case "sum":
            return [1.0] * len(exits)
        case "weighted":
            return [number / sum(exits) for number in exits]
    return [1 / len(exits)] * len(exits)


def exit_states(
    model: nn.Module | DecoderStack, exits: Sequence[int], **inputs: Any
) -> dict[int, Float[Tensor, "b l d"]]:
    """The raw states after the given blocks, out of one pass that ends at the deepest of them.

    Nothing else is kept, and no logits are computed. Gradients flow, through gradient checkpointing
    as well.

    Args:
        model: A causal language model that `DecoderStack` knows, or its parts.
        exits: Ascending, from 1 to the number of blocks.
        inputs: Of the model: ``input_ids``, ``attention_mask``, ``position_ids``.

    Raises:
        ValueError: See `check_exits`.
        TypeError: See `DecoderStack.of`.
    """
    stack = model if isinstance(model, DecoderStack) else DecoderStack.of(model)
    exits = check_exits(exits, len(stack.layers))
    states: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            states[number] = output[0] if isinstance(output, tuple) else output

        return hook

    with ending_at(stack, exits[-1]):
        hooks = [stack.layers[n - 1].register_forward_hook(keep(n)) for n in exits]
        try:
            stack.backbone(**inputs, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    return states


@contextmanager
def ending_at(
    model: nn.Module | DecoderStack, depth: int, head: nn.Module | None = None
) -> Iterator[None]:
    """Within the block the model is its first ``depth`` blocks, then norm and head.

    Args:
        model: A causal language model that `DecoderStack` knows, or its parts.
        depth: From 1 to the number of blocks.
        head: In the place of the model's own.
    """
    stack = model if isinstance(model, DecoderStack) else DecoderStack.of(model)
    changes: list[tuple[Any, nn.Module, nn.Module]] = []
    if depth != len(stack.layers):
        changes.append((stack.backbone, stack.layers, stack.layers[:depth]))
    if head is not None:
        changes.append((stack.model, stack.head, head))
    names = [
        next(name for name, child in owner.named_children() if child is old)
        for owner, old, _ in changes
    ]
    for name, (owner, _, new) in zip(names, changes, strict=True):
        setattr(owner, name, new)
    try:
        yield
    finally:
        for name, (owner, old, _) in zip(names, changes, strict=True):
            setattr(owner, name, old)


def head_loss(
    head: nn.Linear,
    states: Sequence[Float[Tensor, "n d"]],
    labels: Int[Tensor, " n"],
    weights: Float[Tensor, "e n"],
    chunk_size: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, "e n"]]:
    """`linear_cross_entropy_sum` through a head, also one whose weight is spread over processes.

    Under ZeRO-3 a weight is whole only while its module is called: then chunks go through the
    module, a second time in the backward pass.
    """
    bias: Any = head.bias  # torch declares that there is one
    if bias is not None:
        raise TypeError("the head has a bias, which its exits would lack; give a model without")
    if not hasattr(head.weight, "ds_id"):
        return linear_cross_entropy_sum(states, head.weight, labels, weights, chunk_size)

    def of_rows(rows: Tensor, wanted: Tensor) -> Tensor:
        return cross_entropy(head(rows).float(), wanted, reduction="none")

    losses = torch.stack(
        [
            torch.cat(
                [
                    checkpoint(of_rows, state[rows], labels[rows], use_reentrant=False)
                    for rows in chunks(len(labels), chunk_size)
                ]
            )
            for state in states
        ]
    )
    return (weights * losses).sum(), losses.detach()


def truncated(
    model: nn.Module, depth: int, *, share: bool = False, exits: Sequence[int] = ()
) -> nn.Module:
    """A model of the first ``depth`` blocks with the same norm and head: exit ``depth`` on its own.

    Its logits are those of the exit, bit for bit, and transformers saves and loads it like any
    other (``num_hidden_layers`` and ``layer_types`` say the new depth).

    Args:
        model: A causal language model that `DecoderStack` knows; it stays as it is.
        depth: From 1 to the number of blocks.
        share: Whether the weights are the model's own, in the same memory; else they are copied.
        exits: Those it was trained with; the ones up to ``depth`` go into the config.

    Raises:
        ValueError: Not a depth of the model.
        TypeError: See `DecoderStack.of`.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> wide = {"hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=9, num_hidden_layers=3, **wide))
    >>> truncated(model, 2, exits=[1, 2, 3]).config.sorted_exits
    [1, 2]
    """
    check_exits([depth], len(DecoderStack.of(model).layers))
    tensors = [*model.parameters(), *model.buffers()]
    # deepcopy takes what is in its memo as copied already.
    cut: Any = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    keep_layers(cut, depth)
    if exits:
        setattr(cut.config, EXITS_FIELD, [n for n in exits if n <= depth])
    return cut if share else copy.deepcopy(cut)


__all__ = [
    "EXITS_FIELD",
    "check_exits",
    "ending_at",
    "exit_shares",
    "exit_states",
    "head_loss",
    "truncated",
]
