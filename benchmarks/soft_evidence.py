"""What do the exits of one SoFT run come to beside the paper's baselines? SmolLM2 on E2E.

Arms, all with as many steps: SFT (the last exit alone is trained; what the others say is reported),
SoFT (`--also`: at other learning rates, too), SFT+ICT (a head per exit on the model that SFT gave,
half as many steps more), and the first n layers fine-tuned by themselves. `base` is not trained.
Each is scored at every exit it has, on E2E's test set: perplexity of the first reference, BLEU and
ROUGE-L of greedy texts against all.
Every finished run is a line of a file, so that a killed study goes on where it was; the weights of
SFT and SoFT are kept beside it for `soft_decoding.py`.

    python benchmarks/soft_evidence.py --data_dir DIR      # E2E's published files
    python benchmarks/soft_evidence.py --data_dir DIR --stage rates   # first: which learning rate
    python benchmarks/soft_report.py docs/evidence/soft.md runs/soft_evidence
"""

import argparse
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from math import isnan
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch

from benchmarks.common import start
from benchmarks.distillation_training import quiet_trainer, versions
from lightning_kd.data import E2E
from lightning_kd.methods import SoFT

Scores = dict[str, dict[str, float]]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of the study."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--student", default="assets/smollm2")
    made.add_argument("--data_dir", required=True, help="with valid.txt and test.txt")
    made.add_argument("--exits", type=int, nargs="+", default=[10, 15, 20, 25, 30])
    made.add_argument("--extracted", type=int, nargs="*", default=[10, 20])
    made.add_argument("--steps", type=int, default=400)
    made.add_argument("--batch_size", type=int, default=8)
    made.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    made.add_argument("--sft_rate", type=float, default=1e-4)
    made.add_argument("--soft_rate", type=float, default=3e-4)
    made.add_argument("--also", type=float, nargs="*", default=[], help="more rates of SoFT")
    made.add_argument("--eval_examples", type=int, default=300)
    made.add_argument("--texts", type=int, default=96, help="written at every exit")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--arms", nargs="*", default=None, help="only these")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--precision", default="bf16-mixed")
    made.add_argument("--output", type=Path, default=Path("runs/soft_evidence"))
    return made


def e2e(given: argparse.Namespace, texts: int) -> E2E:
    """Published files; where training's is not there, it is the rest of a holdout of valid.txt."""
    return E2E(
        "e2e",
        tokenizer=given.student,
        data_dir=given.data_dir,
        max_length=128,
        batch_size=given.batch_size,
        eval_batch_size=32,
        group_by_length=True,
        holdout_fraction=0.05,
        limit_eval_examples=given.eval_examples,
        generate_examples=texts,
    )


class Study:
    """One budget for all arms; an arm gives scores by exit."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.output = given, given.output

    def sft(self, seed: int) -> Scores:
        """The usual fine-tuning."""
        module = self.module(seed, self.given.sft_rate, exits=[self.given.exits[-1]])
        self.fit(module, seed, self.given.steps)
        return self.kept(module, "sft", seed)

    def soft(self, seed: int) -> Scores:
        """All exits at once."""
        module = self.module(seed, self.given.soft_rate, exits=self.given.exits)
        self.fit(module, seed, self.given.steps)
        return self.kept(module, "soft", seed)

    def again(self, seed: int, rate: float) -> Scores:
        """All exits at another rate."""
        module = self.module(seed, rate, exits=self.given.exits)
        self.fit(module, seed, self.given.steps)
        return self.scores(module)

    def ict(self, seed: int) -> Scores:
        """Heads on the frozen model that `sft` left."""
        own: dict[str, Any] = {"head": "per_exit", "train": "heads", "exits": self.given.exits}
        module = self.module(seed, self.given.soft_rate, **own)
        module.student.load_state_dict(torch.load(self.weights("sft", seed), weights_only=True))
        for head in module.heads.values():  # they start from the head that SFT gave
            head.load_state_dict(module.stack.head.state_dict())
        self.fit(module, seed, self.given.steps // 2)
        return self.scores(module)

    def extracted(self, seed: int, depth: int) -> Scores:
        """The pre-trained model's first layers alone."""
        alone: dict[str, Any] = {"student_layers": depth, "exits": [depth]}
        module = self.module(seed, self.given.soft_rate, evaluation_exits=[depth], **alone)
        self.fit(module, seed, self.given.steps)
        return self.scores(module)

    def base(self, seed: int) -> Scores:
        """As it was downloaded."""
        return self.scores(self.module(seed, 1e-4, exits=self.given.exits))

    def module(self, seed: int, rate: float, **method: Any) -> SoFT:
        """A method on the pre-trained model."""
        L.seed_everything(seed, verbose=False)
        settings = {"evaluation_exits": self.given.exits, "seed": seed, **method}
        return SoFT(
            self.given.student,
            "e2e",
            learning_rate=rate,
            weight_decay=0.0,
            warmup_fraction=0.03,
            lr_schedule="cosine",
            **settings,
        )

    def fit(self, module: SoFT, seed: int, steps: int) -> None:
        """Train; the last weights stay."""
        L.seed_everything(seed, verbose=False)
        more = {"precision": self.given.precision, "max_steps": steps, "limit_val_batches": 0}
        trainer = self.trainer(max_epochs=-1, **more)
        trainer.fit(module, datamodule=e2e(self.given, 0))

    def trainer(self, max_epochs: int = 1, **more: Any) -> L.Trainer:
        """Without checkpoints; evaluations are in fp32."""
        off = {"enable_checkpointing": False, "default_root_dir": self.output}
        return quiet_trainer(max_epochs, **{"precision": "32-true", **off, **more})

    def scores(self, module: SoFT, stage: str = "test") -> Scores:
        """Every metric by exit."""
        trainer = self.trainer()
        data = e2e(self.given, self.given.texts if stage == "test" else 0)
        (trainer.test if stage == "test" else trainer.validate)(module, data, verbose=False)
        found: Scores = {}
        for (_, exit_), evaluation in module.evaluations.items():
            found[str(exit_)] = {
                name: value for name, value in evaluation.values.items() if not isnan(value)
            }
        return found

    def kept(self, module: SoFT, arm: str, seed: int) -> Scores:
        """Its scores; its weights go into a file."""
        torch.save(module.student.state_dict(), self.weights(arm, seed))
        return self.scores(module)

    def weights(self, arm: str, seed: int) -> Path:
        """Where an arm's weights are."""
        path: Path = self.output / f"{arm}_{seed}.pt"
        return path

    def rate(self, seed: int, arm: str, rate: float) -> Scores:
        """A run of this learning rate, on what is held out of training."""
        exits = self.given.exits
        module = self.module(seed, rate, exits=exits[-1:] if arm == "sft" else exits)
        self.fit(module, seed, self.given.steps)
        return self.scores(module, "validate")


def arms(given: argparse.Namespace) -> Iterator[tuple[str, Callable[[Study, int], Scores]]]:
    """Name and run of every arm."""
    if given.stage == "rates":
        for arm in ("soft", "sft"):
            for rate in given.rates:
                name = f"{arm} at {rate:g}"
                yield name, lambda s, seed, a=arm, r=rate: s.rate(seed, a, r)  # type: ignore[misc]
        return
    yield "base", Study.base
    yield "sft", Study.sft
    yield "soft", Study.soft
    for rate in given.also:
        yield f"soft@{rate:g}", lambda s, seed, r=rate: s.again(seed, r)  # type: ignore[misc]
    yield "ict", Study.ict
    for depth in given.extracted:
        yield f"extracted_{depth}", lambda s, seed, n=depth: s.extracted(seed, n)  # type: ignore[misc]


def main() -> None:
    """Run what is not done yet."""
    options = parser(__doc__)
    options.add_argument("--stage", default="report", choices=("rates", "report"))
    given = options.parse_args()
    start(argparse.Namespace(**vars(given), seed=0))
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    given.output.mkdir(parents=True, exist_ok=True)
    records = given.output / f"{given.stage}.jsonl"
    lines = records.read_text().splitlines() if records.exists() else []
    done = {(record["arm"], record["seed"]) for record in map(json.loads, lines)}
    study = Study(given)
    left_out = ("output", "arms", "stage", "seeds", "data_dir", "student", "threads")
    settings = {key: value for key, value in vars(given).items() if key not in left_out}
    for seed in given.seeds:
        for name, run in arms(given):
            again = name == "base" and any(arm == "base" for arm, _ in done)
            if again or (name, seed) in done or (given.arms and name not in given.arms):
                continue
            begin = perf_counter()
            scores = run(study, seed)
            done.add((name, seed))
            record = {"arm": name, "seed": seed, "seconds": round(perf_counter() - begin, 1)}
            record |= {"scores": scores, "settings": settings, "versions": versions()}
            with records.open("a") as file:
                print(json.dumps(record), file=file)
            shown = {n: {k: round(v, 3) for k, v in s.items()} for n, s in scores.items()}
            print(name, seed, f"{record['seconds']} s", json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
