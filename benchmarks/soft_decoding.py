"""What do the exits of a trained model buy in decoding? The weights of `soft_evidence.py` on E2E.

One text at a time, greedy, fp32, packed weights. Per model (SFT, SoFT):

- fixed depths and confidence exits whose thresholds were set on held-out prompts for several wanted
  agreements: BLEU and ROUGE-L against average depth, tokens per second beside the full model's;
- self-speculative decoding with the exit and window that the tuner chose on held-out prompts:
  tokens per second beside plain greedy, acceptance, and whether all tokens are the same.

All modes continue a prompt before the next prompt is taken, in an order that changes; the ratio of
tokens per second is over all texts.

    python benchmarks/soft_decoding.py --data_dir DIR
"""

import argparse
import json
import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import round_order, start
from benchmarks.distillation_training import versions
from benchmarks.soft_evidence import e2e
from benchmarks.soft_evidence import parser as study_parser
from lightning_kd.data.texts import tokenize_texts
from lightning_kd.decoding import (
    Generation,
    calibrate_thresholds,
    dynamic_exit,
    greedy,
    self_speculative,
    tune_speculation,
)
from lightning_kd.metrics import SCORERS
from lightning_kd.models import load_model
from lightning_kd.nn import pack_linear_layers
from lightning_kd.tasks import task_named

TOKENS = 64  # E2E's texts
Mode = Callable[[list[int]], Generation]


def options() -> argparse.Namespace:
    """The study's options and those of decoding."""
    made = study_parser(__doc__)
    made.add_argument("--models", nargs="+", default=["sft", "soft"])
    made.add_argument("--agreements", type=float, nargs="+", default=[0.8, 0.9, 0.95, 0.99])
    made.add_argument("--sample", type=int, default=24, help="held-out prompts, to tune on")
    return made.parse_args()


def prompts(data: Any, stage: str, count: int) -> list[dict[str, Any]]:
    """So many different meanings, evenly spread: tokens of the prompt, and true texts."""
    splits = data.read()
    if stage == "held out":  # trained on neither; the texts of training are foreseen too well
        _, splits[stage] = data._hold_out(splits["train"])
    examples = splits[stage]
    first = {prompt: -place for place, prompt in enumerate(reversed(examples["sentence1"]))}
    last = len(examples) - 1
    places = sorted(last + place for place in first.values())
    chosen = examples.select(places[:: max(len(places) // count, 1)][:count])
    # as in training and evaluation: the opening token or the chat template belong to the prompt
    texts = tokenize_texts(chosen, data.tokenizer, data.max_length, chat=data.chat).to_pylist()
    return [
        {
            "tokens": text["input_ids"][: text["prompt_lengths"]],
            "references": row["label"]["references"],
        }
        for text, row in zip(texts, chosen, strict=True)
    ]


def modes(model: Any, given: argparse.Namespace, tuning: list[list[int]]) -> dict[str, Mode]:
    """What continues a prompt, by name; thresholds and windows are set on the tuning prompts."""
    exits = given.exits[:-1]
    depth = model.config.num_hidden_layers
    made: dict[str, Mode] = {
        f"depth {n}": lambda ids, n=n: greedy(model, ids, TOKENS, depth=n)  # type: ignore[misc]
        for n in [depth, *exits]
    }
    for wanted in given.agreements:
        found = calibrate_thresholds(model, tuning, exits, agreement=wanted, max_new_tokens=TOKENS)
        print(
            f"agreement {wanted}: thresholds {[round(t, 3) for t in found.thresholds]}", flush=True
        )
        made[f"agreement {wanted:g}"] = lambda ids, t=found.thresholds: dynamic_exit(  # type: ignore[misc]
            model, ids, TOKENS, exits=exits, thresholds=t
        )
    best = tune_speculation(model, tuning, exits, max_new_tokens=TOKENS)
    print(f"draft {best.draft}, window {best.window}, predicted {best.speedup:.2f}", flush=True)
    name = f"speculative, exit {best.draft}, window {best.window}, predicted {best.speedup:.2f}"
    made[name] = lambda ids: self_speculative(
        model, ids, TOKENS, draft=best.draft, window=best.window
    )
    return made


def measured(
    acts: dict[str, Mode], tests: list[dict[str, Any]], tokenizer: Any
) -> dict[str, dict[str, float]]:
    """Decode every prompt with every mode; scores and tokens per second by mode."""
    names = list(acts)
    made: dict[str, list[Generation]] = {name: [] for name in names}
    for index, test in enumerate(tests):
        for place in round_order(len(names), index % (2 * len(names))):
            made[names[place]].append(acts[names[place]](test["tokens"]))
    full = made[names[0]]
    references = [test["references"] for test in tests]
    found = {}
    for name, texts in made.items():
        written = [tokenizer.decode(one.tokens, skip_special_tokens=True).strip() for one in texts]
        equal = [one.tokens == other.tokens for one, other in zip(texts, full, strict=True)]
        seconds = sum(one.seconds for one in texts)
        depths = [depth for one in texts for depth in one.depths]
        found[name] = {
            **{k: float(SCORERS[k](written, references).mean()) for k in ("bleu", "rouge_l")},
            "average_depth": sum(depths) / len(depths),
            "heads_per_token": sum(one.num_heads for one in texts) / len(depths),
            "tokens_per_second": sum(len(one.tokens) - 1 for one in texts) / seconds,
            "acceptance": sum(o.accepted for o in texts) / max(sum(o.drafted for o in texts), 1),
            "equal_texts": sum(equal) / len(equal),
        }
    return found


def main() -> None:
    """Measure every model of every seed that is not in the file yet."""
    given = options()
    start(argparse.Namespace(**vars(given), seed=0))
    warnings.filterwarnings("ignore")
    data = e2e(given, 0)
    tests = prompts(data, "test", given.texts)
    tuning = [row["tokens"] for row in prompts(data, "held out", given.sample)]
    records = given.output / "decoding.jsonl"
    lines = records.read_text().splitlines() if records.exists() else []
    done = {(record["model"], record["seed"]) for record in map(json.loads, lines)}
    for seed in given.seeds:
        for name in given.models:
            if (name, seed) in done:
                continue
            model: Any = load_model(given.student, task_named("e2e")).eval()
            weights = torch.load(given.output / f"{name}_{seed}.pt", weights_only=True)
            model.load_state_dict(weights)
            model.requires_grad_(requires_grad=False)
            pack_linear_layers(model)  # for all modes
            scores = measured(modes(model, given, tuning), tests, data.tokenizer)
            record = {"model": name, "seed": seed, "scores": scores, "versions": versions()}
            record |= {"settings": {"texts": len(tests), "tuned_on": len(tuning)}}
            with records.open("a") as file:
                print(json.dumps(record), file=file)
            for mode, values in scores.items():
                print(name, seed, mode, {k: round(v, 3) for k, v in values.items()}, flush=True)


if __name__ == "__main__":
    main()
