"""Does one QDyLoRA run serve every rank? Perplexity per rank on SmolLM2, equal steps for all arms.

Arms, on the same NF4 base: QDyLoRA under both scalings; QLoRA (PEFT's layers) at each rank; QLoRA
at the largest rank, cut to its first components under both scalings, and cut optimally (SVD of the
trained update); the base alone. The data are instructions about films. What trains are adapters on
the last layers: those below run once per example, quantized as well, which makes this many runs
affordable on one core. Every finished run is a line of a file, so that a killed study goes on where
it was.

    python benchmarks/qdylora_evidence.py
    python benchmarks/qdylora_report.py docs/evidence/qdylora.md runs/qdylora_evidence.jsonl
"""

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import start
from lightning_kd.data import Instructions
from lightning_kd.functional import truncate_svd
from lightning_kd.methods import LoRA, QDyLoRA, TaskModule
from lightning_kd.models import load_model
from lightning_kd.nested import Nested
from lightning_kd.nn import keep_layers
from lightning_kd.optim import lr_scheduler
from lightning_kd.quantization import quantize
from lightning_kd.tasks import CausalLM

TASK = CausalLM("reviews")
HEAD = ("lm_head",)
Batch = dict[str, Tensor]
Scores = dict[str, float]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", default="assets/smollm2")
    parser.add_argument("--data_dir", default="assets/reviews/instructions")
    parser.add_argument("--backend", default="bitsandbytes", choices=("bitsandbytes", "reference"))
    parser.add_argument("--top_layers", type=int, default=4, help="layers that have adapters")
    parser.add_argument("--max_rank", type=int, default=16, help="a power of two")
    parser.add_argument("--alpha", type=float, default=16.0)
    parser.add_argument("--examples", type=int, default=960, help="of the training set")
    parser.add_argument("--eval_examples", type=int, default=200, help="of the dev set")
    parser.add_argument("--length", type=int, default=96, help="tokens of an example, at most")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arms", nargs="*", default=None, help="only these (qdylora_*, qlora_*)")
    parser.add_argument("--output", type=Path, default=Path("runs/qdylora_evidence.jsonl"))
    return parser.parse_args()


def texts(given: argparse.Namespace) -> tuple[list[Batch], list[Batch]]:
    """Examples for training and for evaluation, one by one and without padding."""
    found = []
    for count, split in ((given.examples, "train"), (given.eval_examples, "val")):
        data = Instructions(
            "reviews",
            tokenizer=given.student,
            data_dir=given.data_dir,
            max_length=given.length,
            limit_examples=count,
            batch_size=1,
            eval_batch_size=1,
            holdout_fraction=0.0,
            generate_examples=0,
        )
        data.setup()
        loaders: Any = data.train_dataloader() if split == "train" else data.val_dataloader()
        loader = loaders[0] if isinstance(loaders, list) else loaders
        rows = [
            {k: batch[k] for k in ("input_ids", "attention_mask", "labels")} for batch in loader
        ]
        found.append(rows[:count])
    return found[0], found[1]


@torch.no_grad()
def features(given: argparse.Namespace, rows: list[Batch]) -> list[Batch]:
    """What the quantized lower layers make of each example, in bfloat16."""
    model: Any = load_model(given.student, TASK).eval()
    keep_layers(model, model.config.num_hidden_layers - given.top_layers)
    quantize(model, backend=given.backend, exclude=HEAD)
    model.model.norm = nn.Identity()  # it belongs behind the last layer
    made = []
    for row in rows:
        inputs = {"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]}
        states = model.model(**inputs, use_cache=False).last_hidden_state
        made.append({"inputs_embeds": states[0].bfloat16(), "labels": row["labels"][0]})
    return made


def top_of(given: argparse.Namespace) -> nn.Module:
    """The last layers and the head, dense."""
    model: Any = load_model(given.student, TASK)
    depth = model.config.num_hidden_layers
    keep_layers(model, list(range(depth - given.top_layers, depth)))
    made: nn.Module = model
    return made


def batch_of(rows: list[Batch]) -> Batch:
    """Padded to the longest."""
    pad = nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(row["labels"]) for row in rows])
    return {
        "inputs_embeds": pad([row["inputs_embeds"].float() for row in rows], batch_first=True),
        "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=-100),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
    }


class Study:
    """One budget for all arms; an arm gives perplexities by rank."""

    def __init__(self, given: argparse.Namespace, train: list[Batch], dev: list[Batch]) -> None:
        self.given, self.train_rows = given, train
        ordered = sorted(dev, key=lambda row: len(row["labels"]))
        self.dev = [batch_of(ordered[i : i + 32]) for i in range(0, len(ordered), 32)]
        self.ranks = [2**i for i in range(given.max_rank.bit_length())]

    def dynamic(self, seed: int, scaling: str) -> dict[str, Scores]:
        """One QDyLoRA run, all ranks."""
        module = self.fit(self.module(scaling, seed), seed)
        return {f"QDyLoRA {scaling}": self.evaluate(module)}

    def dedicated(self, seed: int, rank: int) -> dict[str, Scores]:
        """A QLoRA of this rank; of the largest one also its cuts."""
        torch.manual_seed(seed)
        base = top_of(self.given)
        quantize(base, backend=self.given.backend, exclude=HEAD)
        settings: dict[str, Any] = {"rank": rank, "alpha": self.given.alpha, "weight_decay": 0.0}
        module = LoRA(base, TASK, target_modules="all-linear", **settings)
        scores = self.evaluate(self.fit(module, seed))
        found = {"QLoRA": {str(rank): scores["-"]}}
        return {**found, **self.cuts(module)} if rank == self.ranks[-1] else found

    def cuts(self, trained: LoRA) -> dict[str, Scores]:
        """The largest QLoRA, used below its rank."""
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            trained.export(Path(folder) / "adapter")
            for scaling in ("alpha/R", "alpha/b"):
                module = self.module(scaling, seed=0)
                module.load_adapter(Path(folder) / "adapter")
                found[f"QLoRA-{self.ranks[-1]} cut {scaling}"] = self.evaluate(module)
                if scaling == "alpha/R":
                    for layer in module.adapters.values():
                        a, b = truncate_svd(layer.lora_A.data, layer.lora_B.data, self.ranks[-1])
                        layer.lora_A.data.copy_(a)
                        layer.lora_B.data.copy_(b)
                    found[f"QLoRA-{self.ranks[-1]} SVD cut"] = self.evaluate(module)
        return found

    def base(self, seed: int) -> dict[str, Scores]:
        """Nothing is trained."""
        module = self.module("alpha/b", seed)
        with module.at_size(1):
            return {"base": {"-": self.perplexity(module)}}

    def module(self, scaling: str, seed: int) -> QDyLoRA:
        """A new adapter on the quantized top."""
        torch.manual_seed(seed)
        return QDyLoRA(
            top_of(self.given),
            TASK,
            max_rank=self.given.max_rank,
            alpha=self.given.alpha,
            scaling=scaling,  # type: ignore[arg-type]
            dropout=0.0,
            backend=self.given.backend,
            gradient_checkpointing=False,
            seed=seed,
        )

    def fit(self, module: TaskModule, seed: int) -> TaskModule:
        """Train for the budget: AdamW, a constant rate after warming up, gradients clipped."""
        given = self.given
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=given.learning_rate, weight_decay=0.0)
        scheduler = lr_scheduler(optimizer, "constant", 0.03, given.steps)
        generator = torch.Generator().manual_seed(seed)
        module.student.train()
        order: list[int] = []
        for step in range(given.steps):
            if isinstance(module, QDyLoRA):
                module.resize(module.sampler.draw(step))
            if len(order) < given.batch_size:
                order = torch.randperm(len(self.train_rows), generator=generator).tolist()
            picked, order = order[: given.batch_size], order[given.batch_size :]
            batch = batch_of([self.train_rows[i] for i in picked])
            loss = module.objective(batch)["hard"]
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 0.3)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return module

    def evaluate(self, module: TaskModule) -> Scores:
        """Perplexity by rank."""
        if not isinstance(module, Nested):
            return {"-": self.perplexity(module)}
        found = {}
        for rank in self.ranks:
            with module.at_size(rank):
                found[str(rank)] = self.perplexity(module)
        return found

    @torch.no_grad()
    def perplexity(self, module: TaskModule) -> float:
        """On the dev set, over all targets."""
        module.eval()
        answers = [TASK.answers(module.predict(batch), batch) for batch in self.dev]
        losses, _, counts = torch.cat(answers).double().sum(0)
        return float((losses / counts).exp())


def arms(ranks: list[int]) -> Iterator[tuple[str, Callable[[Study, int], dict[str, Scores]]]]:
    """Name and run of every arm; the interesting ones first."""
    for scaling in ("alpha/b", "alpha/R"):
        name = f"qdylora_{scaling.replace('/', '_')}"
        yield name, lambda s, seed, c=scaling: s.dynamic(seed, c)  # type: ignore[misc]
    for rank in reversed(ranks):
        yield f"qlora_{rank}", lambda s, seed, r=rank: s.dedicated(seed, r)  # type: ignore[misc]
    yield "base", Study.base


def main() -> None:
    """Run what is not done yet."""
    given = parse()
    start(argparse.Namespace(**vars(given), seed=0))
    warnings.filterwarnings("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    output: Path = given.output
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = output.read_text().splitlines() if output.exists() else []
    done = {(record["arm"], record["seed"]) for record in map(json.loads, lines)}
    train, dev = (features(given, rows) for rows in texts(given))
    study = Study(given, train, dev)
    settings = {k: v for k, v in vars(given).items() if k not in ("output", "arms")}
    for seed in range(given.seeds):
        for name, run in arms(study.ranks):
            if (name, seed) in done or (given.arms and name not in given.arms):
                continue
            begin = perf_counter()
            scores = run(study, seed)
            record = {"arm": name, "seed": seed, "seconds": round(perf_counter() - begin, 1)}
            with output.open("a") as file:
                print(json.dumps({**record, "scores": scores, "settings": settings}), file=file)
            print(name, seed, f"{record['seconds']} s", json.dumps(scores), flush=True)


if __name__ == "__main__":
    main()
