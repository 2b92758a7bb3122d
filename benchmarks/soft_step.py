"""Does a SoFT step cost its matrix products, and what do its exits cost in memory?

A random decoder in the proportions of SmolLM2-135M (grouped heads, tied embedding), scaled to fit:
its vocabulary is smaller, too, so that eight heads cost as much beside the backbone as they do
there (twice as many weights). 8 exits, all tokens but the first of each row as targets, fp32.

The limit is made of exactly the parts that a step cannot do without: one pass of the backbone with
its backward pass, and for each exit the products of the head: logits, their gradients' product with
the head's weight and with the states. Nothing of a loss is in it. The loop is what one has without
SoFT's single pass: the model cut at each exit runs forward and backward with transformers' own
loss.

The last part is the memory of the head alone, with the backbone's states given: the peak of what
forward and backward allocate at 1, 2, 4 and 8 exits, everything counted, so also the gradients of
the states, which grow with the exits. There the vocabulary is SmolLM2's own.

    python benchmarks/soft_step.py
    python benchmarks/soft_step.py --rounds 2 --warmup 0      # a quick try
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Check, Spread, interleaved, parser, ratio, report
from benchmarks.memory import peak_bytes
from lightning_kd.functional import linear_cross_entropy_sum
from lightning_kd.methods import SoFT
from lightning_kd.nn import ending_at
from lightning_kd.tasks import CausalLM

EXITS = 8
FULL_VOCABULARY = 49152


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, rounds=5)
    made.add_argument("--layers", type=int, default=16)
    made.add_argument("--width", type=int, default=384)
    made.add_argument("--vocabulary", type=int, default=16384)
    made.add_argument("--batch_size", type=int, default=2)
    made.add_argument("--length", type=int, default=128)
    made.add_argument("--chunk_size", type=int, default=256)
    return made.parse_args()


def decoder(given: argparse.Namespace) -> Any:
    """A Llama with SmolLM2's proportions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = given.width // 64
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=given.vocabulary,
            hidden_size=given.width,
            intermediate_size=given.width * 8 // 3,
            num_hidden_layers=given.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(heads // 3, 1),
            tie_word_embeddings=True,
        )
    ).train()


def batch(given: argparse.Namespace) -> dict[str, Tensor]:
    """Random tokens, each of which is to be predicted."""
    tokens = torch.randint(given.vocabulary, (given.batch_size, given.length))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def limit(model: Any, examples: dict[str, Tensor], exits: int) -> Callable[[], None]:
    """The backbone's passes and the products of the heads."""
    weight = model.lm_head.weight
    inputs = {key: examples[key] for key in ("input_ids", "attention_mask")}

    def step() -> None:
        states = model.model(**inputs, use_cache=False).last_hidden_state
        rows = states[:, :-1].flatten(0, 1)
        torch.autograd.backward(states, torch.ones_like(states))
        with torch.no_grad():
            scores = weight.new_empty(rows.shape[0], weight.shape[0])
            of_weight = torch.zeros_like(weight)
            for _ in range(exits):
                torch.mm(rows, weight.t(), out=scores)
                torch.mm(scores, weight)
                of_weight.addmm_(scores.t(), rows)
        model.zero_grad()

    return step


def head_memory(given: argparse.Namespace) -> dict[int, int]:
    """Peak of the head's loss and gradients by number of exits."""
    count = given.batch_size * (given.length - 1)
    weight = torch.randn(FULL_VOCABULARY, given.width, requires_grad=True)
    labels = torch.randint(FULL_VOCABULARY, (count,))
    found = {}
    for exits in (1, 2, 4, EXITS):
        states = [torch.randn(count, given.width, requires_grad=True) for _ in range(exits)]
        weights = torch.full((exits, count), 1 / exits / count)

        def passes(states: list[Tensor] = states, weights: Tensor = weights) -> None:
            loss, _ = linear_cross_entropy_sum(states, weight, labels, weights, given.chunk_size)
            torch.autograd.grad(loss, [*states, weight])

        found[exits] = peak_bytes(passes)
    return found


def main() -> None:
    """Measure and report."""
    given = options()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    model = decoder(given)
    every = given.layers // EXITS
    exits = list(range(every, given.layers + 1, every))
    module = SoFT(model, CausalLM("benchmark"), exits=exits, chunk_size=given.chunk_size)
    examples = batch(given)

    def ours() -> Tensor:
        loss = module.objective(examples)["sorted"]
        loss.backward()  # type: ignore[no-untyped-call]
        model.zero_grad()
        return loss.detach()

    def loop() -> Tensor:
        total = torch.zeros(())
        for depth in exits:
            with ending_at(model, depth):
                loss = model(**examples, use_cache=False).loss / len(exits)
                loss.backward()
            total += loss.detach()
        model.zero_grad()
        return total

    values = float(ours()), float(loop())
    if abs(values[0] - values[1]) > 1e-4:
        raise RuntimeError(f"the two do not compute the same loss: {values}")
    systems = {"SoFT": ours, "limit": limit(model, examples, len(exits)), "loop over exits": loop}
    seconds = interleaved(systems, given)
    print(f"{len(exits)} exits of {given.layers} blocks; seconds per step")
    for name, times in seconds.items():
        print(f"{name:>16} | {Spread.of(times)}")
    memory = head_memory(given)
    print("head's peak memory, MB:", {n: round(size / 2**20, 1) for n, size in memory.items()})
    report(
        "soft_step",
        Check("SoFT step / its matrix products", ratio(seconds["SoFT"], seconds["limit"]), 1.10),
        Check(
            "loop over exits / SoFT step",
            ratio(seconds["loop over exits"], seconds["SoFT"]),
            2.0,
            at_most=False,
        ),
        Check("head's peak memory, 8 exits / 1 exit", Spread.of([memory[EXITS] / memory[1]]), 1.05),
        threads=given.threads,
        clock=given.clock,
    )


if __name__ == "__main__":
    main()
