"""Is a QDyLoRA training step as fast as PEFT's QLoRA, and how much do four bits save?

A step is forward, backward (with recomputed layers, as both are run) and AdamW on a language model
whose linear layers are NF4 with double quantization under bitsandbytes, adapters on all of them,
products in fp32. The peer is PEFT at r=64 on the same codes: same base, same starting factors (the
losses are compared before anything is timed). Ours takes a step at each rank it evaluates; a PEFT
step runs beside every one.

Memory is counted in tensors: the model with four-bit layers against its weights in 16 and in 32
bits.

    python benchmarks/qdylora_step.py
    python benchmarks/qdylora_step.py --layers 4 --rounds 2     # a quick try
"""

import argparse
from collections.abc import Callable, Sequence
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
)
from lightning_kd.methods import QDyLoRA
from lightning_kd.models import load_model
from lightning_kd.nn import DynamicLoRALinear, is_four_bit, keep_layers
from lightning_kd.nn.four_bit_linear import packed_tensors
from lightning_kd.quantization import quantize
from lightning_kd.tasks import CausalLM

RANKS = (1, 2, 4, 8, 16, 32, 64)
MAX_RANK = RANKS[-1]
TASK = CausalLM("alpaca")
Batch = dict[str, Tensor]


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, rounds=5)
    made.set_defaults(student="assets/smollm2")
    made.add_argument("--layers", type=int, default=None, help="of the model, the first so many")
    made.add_argument("--batch_size", type=int, default=2)
    made.add_argument("--length", type=int, default=64)
    made.add_argument("--no_checkpointing", action="store_true", help="keep all activations")
    made.add_argument("--backend", default="bitsandbytes", choices=("bitsandbytes", "reference"))
    return made.parse_args()


def model(given: argparse.Namespace) -> Any:
    """The language model in the type of its file."""
    made = load_model(given.student, TASK)
    if given.layers is not None:
        keep_layers(made, given.layers)
    return made


def text_batches(given: argparse.Namespace, vocabulary: int) -> list[Batch]:
    """Random tokens, of which the first quarter is a prompt."""
    generator = torch.Generator().manual_seed(given.seed)
    made = []
    for _ in range(4):
        shape = given.batch_size, given.length
        tokens = torch.randint(10, vocabulary, shape, generator=generator)
        labels = tokens.clone()
        labels[:, : given.length // 4] = -100
        mask = torch.ones_like(tokens)
        made.append({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    return made


def peft_twin(given: argparse.Namespace) -> nn.Module:
    """PEFT's QLoRA at the largest rank, on codes of its own."""
    from peft import LoraConfig, TaskType, get_peft_model

    base = model(given)
    quantize(base, backend=given.backend, exclude=["lm_head"])
    base.is_loaded_in_4bit = given.backend == "bitsandbytes"  # PEFT then takes its four-bit layer
    if not given.no_checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=MAX_RANK, lora_alpha=16, target_modules="all-linear"
    )
    made: nn.Module = get_peft_model(base, config)
    return made.train()


def copy_factors(ours: nn.Module, theirs: nn.Module) -> None:
    """Fill our adapters with something to compare and give PEFT's the same."""
    peft = {n.removeprefix("base_model.model."): m for n, m in theirs.named_modules()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, layer in ours.named_modules():
            if isinstance(layer, DynamicLoRALinear):
                layer.lora_A.normal_(0, 0.02, generator=generator)
                layer.lora_B.normal_(0, 0.02, generator=generator)
                twin: Any = peft[name]
                twin.lora_A["default"].weight.copy_(layer.lora_A)
                twin.lora_B["default"].weight.copy_(layer.lora_B)


def stepping(
    loss: Callable[[Batch], Tensor], optimizer: torch.optim.Optimizer, batches: Sequence[Batch]
) -> Callable[[], None]:
    """One optimizer step a call."""
    turn = cycle(batches)

    def one() -> None:
        torch.autograd.backward(loss(next(turn)))
        optimizer.step()
        optimizer.zero_grad()

    return one


def bytes_of(whole: nn.Module) -> dict[str, float]:
    """Megabytes of a model's base: as it is, and were all of its weights in 16 or in 32 bits."""
    quantized = [m for m in whole.modules() if is_four_bit(m)]
    inside = {id(p) for m in quantized for n, p in m.named_parameters() if n != "bias"}
    others = [p for n, p in whole.named_parameters() if id(p) not in inside and "lora_" not in n]
    packed = [t for m in quantized for t in packed_tensors(m)]
    weights = sum(m.in_features * m.out_features for m in quantized)  # type: ignore[operator, misc]
    entries = sum(p.numel() for p in others) + weights
    kept = sum(t.numel() * t.element_size() for t in (*packed, *others))
    return {"four bits": kept / 1e6, "16 bits": 2 * entries / 1e6, "32 bits": 4 * entries / 1e6}


def main() -> None:
    """Measure and report."""
    given = options()
    start(given)
    module = QDyLoRA(
        model(given),
        TASK,
        max_rank=MAX_RANK,
        dropout=0.0,
        backend=given.backend,
        gradient_checkpointing=not given.no_checkpointing,
    )
    module.student.train()
    twin = peft_twin(given)
    copy_factors(module.student, twin)
    student: Any = module.student
    batches = text_batches(given, student.config.vocab_size)

    def ours(batch: Batch) -> Tensor:
        return module.objective(batch)["hard"]

    def theirs(batch: Batch) -> Tensor:
        return TASK.reduce(TASK.hard_loss(TASK.predict(twin, batch), batch), batch)

    with torch.no_grad():
        losses = [float(ours(batches[0])), float(theirs(batches[0]))]
    print(f"losses before training, rank {MAX_RANK}: {losses} (ours, PEFT)")
    if abs(losses[0] - losses[1]) > 1e-4:
        raise RuntimeError(f"the two do not compute the same thing: losses {losses}")
    trained = [p for p in twin.parameters() if p.requires_grad]
    rival = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
    module.learning_rate = 1e-5
    step, peft = stepping(ours, module.make_optimizer(), batches), stepping(theirs, rival, batches)

    def at(rank: int) -> Callable[[], None]:
        def one() -> None:
            module.resize(rank)
            step()

        return one

    systems: dict[str, Callable[[], object]] = {}
    for rank in RANKS:
        systems[f"rank {rank}"] = at(rank)
        systems[f"PEFT {rank}"] = peft
    seconds = interleaved(systems, given)
    means = {arm: mean_by_round([seconds[f"{arm} {r}"] for r in RANKS]) for arm in ("rank", "PEFT")}
    print("milliseconds per step")
    for rank in RANKS:
        print(f"{f'rank {rank}':>12} | {Spread.of(seconds[f'rank {rank}']).scaled(1e3)}")
    print(f"{'PEFT r=64':>12} | {Spread.of(means['PEFT']).scaled(1e3)}")
    memory = {name: round(found, 1) for name, found in bytes_of(module.student).items()}
    print(f"megabytes of the base: {memory}")
    report(
        "qdylora_step",
        Check("mean step over ranks / PEFT QLoRA r=64", ratio(means["rank"], means["PEFT"]), 1.00),
        Check(
            "step at rank 64 / PEFT QLoRA r=64",
            ratio(seconds[f"rank {MAX_RANK}"], means["PEFT"]),
            1.05,
        ),
        Check(
            "base in four bits / in 16 bits", ratio([memory["four bits"]], [memory["16 bits"]]), 0.7
        ),
        threads=given.threads,
        clock=given.clock,
        facts={"losses": losses, "megabytes": memory, "backend": given.backend},
    )


if __name__ == "__main__":
    main()
