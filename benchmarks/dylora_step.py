"""Is a DyLoRA training step as fast as a LoRA step, and faster than LyCORIS's DyLoRA?

A step is forward, backward and the strict optimizer step on the MiniLM encoder with its task head:
R=8 on query and value, 32 sentences of 64 tokens, fp32, dropout of the encoder on. The peer is PEFT
at r=8 with torch's AdamW: same base, same head, same starting factors (the losses are compared
before anything is timed). Two limits are printed: the head alone over the frozen encoder, which
needs no backward pass through it, and the frozen encoder with the backward pass that any adapter in
the first layer needs, but without adapters (rank 0): what is left between it and 1 is all that an
adapter's code can win.

LyCORIS is compared on one layer, 768 to 768, 4096 tokens, forward and backward, both drawing ranks
uniformly.

    python benchmarks/dylora_step.py
    python benchmarks/dylora_step.py --rounds 2 --layer_rounds 5     # a quick try
"""

import argparse
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import (
    Check,
    Spread,
    interleaved,
    mean_by_round,
    parser,
    ratio,
    report,
    start,
    token_batches,
)
from lightning_kd.methods import DyLoRA, FineTuning, LoRA, TaskModule
from lightning_kd.nn import DynamicLoRALinear

RANKS = range(1, 9)
MAX_RANK = RANKS[-1]
UPDATES = ("frozen", "full")
LAYER_SIZE, LAYER_TOKENS = 768, 4096
Batch = dict[str, Tensor]


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, rounds=10)
    made.add_argument("--batch_size", type=int, default=32)
    made.add_argument("--length", type=int, default=64)
    made.add_argument("--layer_rounds", type=int, default=40)
    return made.parse_args()


class Trained:
    """A method in training; calling it takes one optimizer step."""

    def __init__(
        self, method: type[TaskModule], batches: Sequence[Batch], **arguments: Any
    ) -> None:
        torch.manual_seed(0)  # a new head starts the same in every method
        self.module = method(task="sst2", **arguments)
        self.module.student.train()
        self.optimizer = self.module.make_optimizer()
        self.batches = cycle(batches)

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the objective's terms."""
        return torch.stack(list(self.module.objective(batch).values())).sum()

    def __call__(self) -> None:
        """Forward, backward and the optimizer."""
        torch.autograd.backward(self.loss(next(self.batches)))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def at(self, rank: int) -> Callable[[], None]:
        """The same, at a rank; changing it is part of the step."""

        def step() -> None:
            self.module.resize(rank)  # type: ignore[operator]
            self()

        return step


def copy_factors(ours: nn.Module, theirs: nn.Module) -> None:
    """Give PEFT's layers the factors of ours, after filling ours with something to compare."""
    peft = {n.removeprefix("base_model.model."): m for n, m in theirs.named_modules()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, layer in ours.named_modules():
            if isinstance(layer, DynamicLoRALinear):
                # From a generator of its own, so that every arm gets the same.
                layer.lora_A.normal_(0, 0.05, generator=generator)
                layer.lora_B.normal_(0, 0.05, generator=generator)
                twin: Any = peft[name]
                twin.lora_A["default"].weight.copy_(layer.lora_A)
                twin.lora_B["default"].weight.copy_(layer.lora_B)


def same_losses(arms: Sequence[Trained], batch: Batch) -> list[float]:
    """Losses of the arms on a batch under the same dropout; raises where they differ."""
    losses = []
    for arm in arms:
        torch.manual_seed(1)
        losses.append(float(arm.loss(batch).detach()))
    if max(losses) - min(losses) > 1e-4:
        raise RuntimeError(f"the arms do not compute the same thing: losses {losses}")
    return losses


def rank_zero(batches: Sequence[Batch], student: str) -> Trained:
    """The frozen encoder without adapters, and the backward pass that adapters would need."""
    arm = Trained(FineTuning, batches, student=student, train="head")
    first = arm.module.student.get_submodule("bert.encoder.layer.0.attention.self")
    for name in ("query", "value"):
        first.get_submodule(name).register_forward_hook(lambda *args: args[-1].requires_grad_())
    return arm


def compare_steps(given: argparse.Namespace) -> tuple[list[Check], dict[str, Any]]:
    """The whole step against PEFT's and against the limits."""
    batches = token_batches(4, given.batch_size, given.length, 30522, given.seed)
    peft = Trained(LoRA, batches, student=given.student, rank=MAX_RANK)
    arms = {
        update: Trained(DyLoRA, batches, student=given.student, max_rank=MAX_RANK, update=update)
        for update in UPDATES
    }
    for arm in arms.values():
        copy_factors(arm.module.student, peft.module.student)
    losses = same_losses([peft, *arms.values()], batches[0])
    print(f"losses before training, rank {MAX_RANK}: {losses} (PEFT, frozen, full)")
    systems: dict[str, Callable[[], object]] = {}
    for rank in RANKS:  # a PEFT step beside every pair of ours
        systems[f"frozen {rank}"] = arms["frozen"].at(rank)
        systems[f"PEFT {rank}"] = peft
        systems[f"full {rank}"] = arms["full"].at(rank)
    systems["head only"] = Trained(FineTuning, batches, student=given.student, train="head")
    systems["rank 0"] = rank_zero(batches, given.student)
    seconds = interleaved(systems, given)
    means = {
        arm: mean_by_round([seconds[f"{arm} {rank}"] for rank in RANKS])
        for arm in (*UPDATES, "PEFT")
    }
    print(f"\n{'step':>12} | milliseconds, median and quartiles")
    shown = ("head only", "rank 0", *(f"{u} {r}" for u in UPDATES for r in RANKS))
    print_table({**{name: seconds[name] for name in shown}, "PEFT r=8": means["PEFT"]})
    against = {update: ratio(means[update], means["PEFT"]) for update in UPDATES}
    limits = {n: ratio(seconds[n], means["PEFT"]).median for n in ("head only", "rank 0")}
    print(f"limits / PEFT: {limits}")
    checks = [
        Check("mean step, frozen update / PEFT r=8", against["frozen"], 1.00),
        Check("mean step, full update / PEFT r=8", against["full"], 1.00),
        *(
            Check(
                f"step at rank 8, {u} update / PEFT r=8",
                ratio(seconds[f"{u} 8"], means["PEFT"]),
                1.05,
            )
            for u in UPDATES
        ),
    ]
    return checks, {"limits": limits, "losses": losses}


def print_table(seconds: Mapping[str, Sequence[float]]) -> None:
    """Milliseconds of every system."""
    for name, values in seconds.items():
        print(f"{name:>12} | {Spread.of(values).scaled(1e3)}")


def lycoris_layer() -> tuple[nn.Module, Any]:
    """LyCORIS's DyLoRA on one linear layer, and the adapter with its factors.

    Raises:
        ImportError: It is not installed.
    """
    import lycoris

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)  # it asks for INFO when it is imported
    layer = nn.Sequential(nn.Linear(LAYER_SIZE, LAYER_SIZE)).requires_grad_(requires_grad=False)
    settings = {"linear_dim": MAX_RANK, "linear_alpha": 16, "algo": "dylora", "block_size": 1}
    network = lycoris.create_lycoris(layer, 1.0, **settings)
    network.apply_to()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return layer, network


def our_layer(layer: nn.Module, theirs: Any) -> DynamicLoRALinear:
    """Our adapter with LyCORIS's factors, on the same base layer.

    Raises:
        RuntimeError: They do not compute the same thing.
    """
    base = nn.Linear(LAYER_SIZE, LAYER_SIZE)
    base.load_state_dict(layer.state_dict())
    ours = DynamicLoRALinear(base, MAX_RANK)
    x = torch.randn(16, LAYER_SIZE)
    with torch.no_grad():
        ours.lora_A.copy_(torch.cat(list(theirs.down_list)))
        ours.lora_B.copy_(torch.cat(list(theirs.up_list), dim=1))
        delta = theirs.get_diff_weight(rank=MAX_RANK - 1)[0]  # counted from 0 there
        ours.set_rank(MAX_RANK)
        error = (ours(x) - theirs.org_forward(x) - x @ delta.t()).abs().max().item()
    if error > 1e-4:
        raise RuntimeError(f"the layers do not compute the same thing: they differ by {error}")
    return ours


def compare_layers(given: argparse.Namespace) -> list[Check]:
    """One layer against LyCORIS's."""
    try:
        layer, network = lycoris_layer()
    except ImportError:
        print("\nno lycoris-lora here, so it is not compared: pip install 'lightning-kd[bench]'")
        return []
    ours = our_layer(layer.get_submodule("0"), network.loras[0])
    parameters = [*ours.parameters(), *network.parameters()]
    x = torch.randn(LAYER_TOKENS, LAYER_SIZE, requires_grad=True)
    signal = torch.randn(LAYER_TOKENS, LAYER_SIZE)
    random.seed(given.seed)  # LyCORIS draws its ranks itself

    def run(module: nn.Module) -> None:
        module(x).backward(signal)
        for tensor in (x, *parameters):
            tensor.grad = None

    def all_ranks(update: str) -> None:
        for rank in RANKS:
            ours.set_rank(rank, rank - 1 if update == "frozen" else 0)
            run(ours)

    def as_many_draws() -> None:
        for _ in RANKS:
            run(layer)

    systems: dict[str, Callable[[], object]] = {
        update: lambda u=update: all_ranks(u)  # type: ignore[misc]
        for update in UPDATES
    }
    seconds = interleaved({"LyCORIS": as_many_draws, **systems}, given, given.layer_rounds)
    print(f"\nlayer of {LAYER_SIZE}, {LAYER_TOKENS} tokens | milliseconds forward and backward")
    print_table({n: [v / MAX_RANK for v in values] for n, values in seconds.items()})
    return [
        Check(
            f"LyCORIS / ours, {u} update", ratio(seconds["LyCORIS"], seconds[u]), 1.5, at_most=False
        )
        for u in UPDATES
    ]


def main() -> None:
    """Measure and report."""
    given = options()
    start(given)
    steps, facts = compare_steps(given)
    layers = compare_layers(given)
    report("dylora_step", steps[0], *steps[1:], *layers, threads=given.threads, facts=facts)


if __name__ == "__main__":
    main()
