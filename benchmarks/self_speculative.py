"""What does self-speculative decoding gain over plain greedy, and over transformers' own?

A random 12-layer Llama whose layers 5 to 12 change little, so that exit 4 foresees most tokens, as
in a model that was trained with exits. A block's weights are larger than a core's cache: like real
models at batch 1 it is bound by reading them. Every system continues the same prompt by the same
number of tokens in every round, four drafted tokens at a time; transformers' early exit gets the
same exit, the same four, and no confidence threshold.

Ours, plain and drafted, has packed weights (`pack_linear_layers`), which make both faster.
``--all`` times ours without packing as well, and transformers' early exit with it, which tells what
packing and what the rest contributes. With all else free of charge, a round of K drafts at
acceptance a and a share r of the blocks makes ``(1 - a^(K+1)) / (1 - a)`` tokens in the time of
``r (K + 1) + 1 - r``: 1.50 x plain greedy at a = 0.82, 1.69 at 0.88, here.

Equal tokens are counted on 1,000 prompts of a narrower model of the same kind, and on every timed
prompt of the wide one.

    python benchmarks/self_speculative.py
    python benchmarks/self_speculative.py --rounds 0     # only the equal tokens
    python benchmarks/self_speculative.py --grid          # is the tuner's choice the fastest?
"""

import argparse
import copy
import sys
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Check, Spread, interleaved, parser, ratio, report, start
from lightning_kd.decoding import Generation, greedy, self_speculative, tune_speculation
from lightning_kd.nn import pack_linear_layers

DEPTH, EXIT, WINDOW = 12, 4, 4
VOCABULARY, NARROW = 4096, 64


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, rounds=10)
    made.set_defaults(student=".")  # the model is made here
    made.add_argument("--hidden", type=int, default=768, help="width of the timed model")
    made.add_argument("--scale", type=float, default=0.018, help="of what layers 5 to 12 add")
    made.add_argument("--tokens", type=int, default=32, help="new ones per prompt")
    made.add_argument("--prompts", type=int, default=1000, help="for equal tokens; 0: none")
    made.add_argument("--all", action="store_true", help="with and without packed weights")
    made.add_argument("--grid", action="store_true", help="time every exit and window, and tune")
    return made.parse_args()


def decoder(hidden: int, vocabulary: int, scale: float, seed: int) -> Any:
    """A random Llama with no end of text, whose layers after the exit add ``scale`` as much."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=DEPTH,
        num_attention_heads=hidden // 64 or 1,
        num_key_value_heads=hidden // 64 or 1,
        max_position_embeddings=512,
        initializer_range=1.6 / hidden**0.5,  # the text wanders instead of repeating itself
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config)
    model.eval().requires_grad_(requires_grad=False)
    for block in model.model.layers[EXIT:]:
        block.self_attn.o_proj.weight *= scale
        block.mlp.down_proj.weight *= scale
    return model


def prompts(count: int, vocabulary: int, seed: int, length: int = 16) -> Tensor:
    """``[count, length]`` random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocabulary, (count, length), generator=generator)


def plain(model: Any, ids: Tensor, tokens: int, **early: Any) -> list[list[int]]:
    """What transformers decodes greedily after prompts of one length."""
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        **early,
    )
    found: list[list[int]] = made[:, ids.shape[1] :].tolist()
    return found


def set_assistant(model: Any) -> None:
    """The same window for transformers, and nothing that would shorten it."""
    settings = model.generation_config
    settings.num_assistant_tokens = WINDOW
    settings.num_assistant_tokens_schedule = "constant"
    settings.assistant_confidence_threshold = 0.0


def full_passes(model: Any, act: Callable[[], object]) -> int:
    """How often the last layer runs."""
    calls = []
    hook = model.model.layers[-1].register_forward_hook(lambda *_: calls.append(1))
    try:
        act()
    finally:
        hook.remove()
    return len(calls)


def identical(given: argparse.Namespace) -> dict[str, Any]:
    """Equal texts of a narrow model: drafted, and transformers' plain ones in batches."""
    model, vocabulary = decoder(NARROW, 512, given.scale, given.seed + 1), 512
    tokens = given.tokens // 2
    equal, close, accepted, drafted, done = 0, 0, 0, 0, 0
    for part in torch.split(prompts(given.prompts, vocabulary, given.seed), 50):
        for row, text in zip(part, plain(model, part, tokens), strict=True):
            made = drafts(model, row, tokens)
            accepted, drafted = accepted + made.accepted, drafted + made.drafted
            equal += made.tokens == text
            if made.tokens != text:  # a batch's last bit, or ours?
                close += made.tokens == greedy(model, row, tokens, eos=()).tokens
        done += len(part)
        print(f"\r{equal} of {done} texts equal", end="", file=sys.stderr, flush=True)
    print(
        f"\n{equal} of {given.prompts} texts equal transformers' greedy ones (hidden {NARROW}, "
        f"{tokens} tokens, acceptance {accepted / drafted:.3f}); of the others {close} equal ours",
        flush=True,
    )
    return {"equal": equal, "equal_to_ours_only": close, "prompts": given.prompts}


def drafts(model: Any, row: Tensor, tokens: int) -> Generation:
    """Ours with the benchmark's exit and window."""
    return self_speculative(model, row, tokens, draft=EXIT, window=WINDOW, eos=())


def main() -> None:
    """Measure and report."""
    given = options()
    start(given)
    counts = identical(given) if given.prompts else {}
    if not given.rounds:
        return
    usual = decoder(given.hidden, VOCABULARY, given.scale, given.seed)
    set_assistant(usual)
    packed = copy.deepcopy(usual)
    pack_linear_layers(packed)
    if given.grid:
        grid(packed, given)
    else:
        timed(usual, packed, given, counts)


def timed(usual: Any, packed: Any, given: argparse.Namespace, counts: dict[str, Any]) -> None:
    """Continue a prompt per round with every system."""
    texts = prompts(given.warmup + given.rounds, VOCABULARY, given.seed)
    acts = systems(usual, packed, given)
    answers: dict[str, list[Any]] = {name: [] for name in acts}

    def each(name: str) -> Callable[[], None]:  # the next prompt in every round
        return lambda: answers[name].append(acts[name](texts[len(answers[name])]))

    seconds = interleaved({name: each(name) for name in acts}, given)
    print("\ntokens per second, prompt included")
    for name, values in seconds.items():
        print(f"{name:>24} | {Spread.of([given.tokens / value for value in values])}")
    written = zip(*([_tokens(one) for one in made] for made in answers.values()), strict=True)
    same = sum(all(text == row[0] for text in row) for row in written)
    made: list[Generation] = answers["speculative"]
    acceptance = sum(one.accepted for one in made) / sum(one.drafted for one in made)
    theirs = full_passes(usual, lambda: acts["transformers early exit"](texts[0]))
    print(
        f"\nacceptance {acceptance:.3f}; rounds on the first prompt: {made[0].rounds}, full passes "
        f"of transformers: {theirs}; {same} of {len(texts)} prompts with equal tokens in all"
    )
    first, *others = checks(seconds)
    report(
        "self_speculative",
        first,
        *others,
        threads=given.threads,
        clock=given.clock,
        hidden=given.hidden,
        acceptance=round(acceptance, 4),
        equal_timed=same,
        timed=len(texts),
        **counts,
    )


def systems(
    usual: Any, packed: Any, given: argparse.Namespace
) -> dict[str, Callable[[Tensor], Any]]:
    """What continues a prompt, by name."""
    tokens = given.tokens
    acts: dict[str, Callable[[Tensor], Any]] = {
        "speculative": lambda row: drafts(packed, row, tokens),
        "greedy": lambda row: greedy(packed, row, tokens, eos=()),
        "transformers": lambda row: plain(usual, row[None], tokens),
        "transformers early exit": lambda row: plain(
            usual, row[None], tokens, assistant_early_exit=EXIT
        ),
    }
    if given.all:
        acts |= {
            "speculative, unpacked": lambda row: drafts(usual, row, tokens),
            "greedy, unpacked": lambda row: greedy(usual, row, tokens, eos=()),
            "the same, packed": lambda row: plain(
                packed, row[None], tokens, assistant_early_exit=EXIT
            ),
        }
    return acts


def checks(seconds: dict[str, list[float]]) -> list[Check]:
    """Tokens per second against each other, of the systems that were timed; the headline first."""
    wanted = [
        ("speculative", "greedy", 1.5),
        ("speculative", "transformers early exit", 1.3),
        ("speculative", "transformers", 1.5),
        ("greedy", "transformers", 1.0),
        ("speculative", "the same, packed", 1.0),
        ("speculative", "greedy, unpacked", 1.5),
        ("speculative, unpacked", "transformers early exit", 1.0),
        ("speculative, unpacked", "greedy, unpacked", 1.0),
        ("greedy", "greedy, unpacked", 1.0),
    ]
    return [
        Check(f"{name} / {than}", ratio(seconds[than], seconds[name]), bound, at_most=False)
        for name, than, bound in wanted
        if name in seconds and than in seconds
    ]


def grid(model: Any, given: argparse.Namespace) -> None:
    """Time exits and windows, and see how near the tuner's choice is to the fastest."""
    texts = prompts(given.warmup + given.rounds, VOCABULARY, given.seed)
    exits, windows = (2, 4, 6, 8), (1, 2, 4, 6, 8)
    found = tune_speculation(
        model, list(prompts(8, VOCABULARY, given.seed + 9)), exits, max_new_tokens=given.tokens
    )
    allowed = {pair: found.table[pair] for pair in found.table if pair[1] in windows}
    choice = max(allowed, key=lambda pair: allowed[pair])

    def run(draft: int, window: int) -> Callable[[], None]:
        turn = iter(texts)
        return lambda: _ignore(
            self_speculative(model, next(turn), given.tokens, draft=draft, window=window, eos=())
        )

    seconds = interleaved({f"{d}, {k}": run(d, k) for d in exits for k in windows}, given)
    totals = {name: fmean(values) for name, values in seconds.items()}
    print("tokens per second by exit and window; predicted speed-up")
    for name, total in sorted(totals.items(), key=lambda item: item[1]):
        draft, window = map(int, name.split(", "))
        print(f"{name:>6} | {given.tokens / total:8.2f} | {found.table[draft, window]:.2f}")
    best = min(totals, key=lambda name: totals[name])
    mine = "{}, {}".format(*choice)
    print(f"tuned: {mine}; fastest: {best}")
    report(
        "self_speculative_tuner",
        Check("fastest / tuned", ratio(seconds[best], seconds[mine]), 0.95, at_most=False),
        tuned=mine,
        fastest=best,
        speedup=round(found.speedup, 3),
    )


def _ignore(made: object) -> None:
    del made


def _tokens(made: Any) -> list[int]:
    tokens: list[int] = made.tokens if isinstance(made, Generation) else made[0]
    return tokens


if __name__ == "__main__":
    main()
