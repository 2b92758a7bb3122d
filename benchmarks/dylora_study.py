"""Is one DyLoRA run as good as a LoRA run at every rank? All arms, several seeds, equal steps.

Arms: the head alone; full fine-tuning; a dedicated LoRA at each rank; LoRA at the largest rank, cut
to its first components under both scalings, and cut optimally (SVD of the trained update); DyLoRA
with either update rule and either scaling. What trains is the top of a real pre-trained encoder:
its lower layers are frozen and run once per example, which makes this many runs affordable
without a GPU. Every finished run is a line of a file, so a killed study goes on where it was.

    python benchmarks/dylora_study.py
    python benchmarks/dylora_study.py --task mrpc --data_dir DIR
"""

import argparse
import itertools
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_kd.data import GLUE, ShardedBatches
from lightning_kd.functional import truncate_svd
from lightning_kd.methods import DyLoRA, FineTuning, LoRA, TaskModule
from lightning_kd.models import load_model
from lightning_kd.tasks import task_named

RANKS = tuple(range(1, 9))
MAX_RANK = RANKS[-1]
Scores = dict[str, dict[str, float]]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data_dir", default="assets/reviews")
    parser.add_argument("--student", default="assets/minilm")
    parser.add_argument("--top_layers", type=int, default=2, help="layers that have adapters")
    parser.add_argument("--examples", type=int, default=4000, help="of each split, at most")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=4e-3, help="of adapters and heads")
    parser.add_argument(
        "--full_learning_rate", type=float, default=1e-4, help="of full fine-tuning"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=None, help="only these (see ARMS)")
    parser.add_argument("--output", type=Path, default=None, help="a .jsonl file")
    return parser.parse_args()


class Given(nn.Module):
    """Stands where the embeddings were: the hidden states come in ready."""

    def forward(self, inputs_embeds: Tensor, **others: Any) -> Tensor:
        """``inputs_embeds`` itself."""
        del others
        return inputs_embeds


def top_of(student: str, task: str, layers: int) -> nn.Module:
    """A BERT classifier that begins ``layers`` below its head."""
    model: Any = load_model(student, task_named(task))
    model.bert.embeddings = Given()
    model.bert.encoder.layer = model.bert.encoder.layer[-layers:]
    model.config.num_hidden_layers = layers
    return model


class Rows(Dataset[Any]):
    """``rows[[i, j]]`` is a list of two."""

    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        return [self.rows[i] for i in indices]


class Features(L.LightningDataModule):
    """GLUE examples as the frozen lower layers leave them, in fp32."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.batch_size, self.seed = options.batch_size, 0
        data = GLUE(
            options.task,
            tokenizer=options.student,
            data_dir=options.data_dir,
            eval_batch_size=64,
            limit_examples=options.examples,
        )
        data.setup()
        model: Any = load_model(options.student, data.spec).eval()
        model.bert.encoder.layer = model.bert.encoder.layer[: -options.top_layers]
        self.train = self.computed(model.bert, data.train_dataloader())
        self.dev = self.computed(model.bert, data.val_dataloader()[0])

    @staticmethod
    @torch.no_grad()
    def computed(encoder: nn.Module, batches: Iterable[Any]) -> list[dict[str, Tensor]]:
        """One row per example, without padding."""
        rows = []
        for batch in batches:
            inputs = {k: v for k, v in batch.items() if k not in ("labels", "idx")}
            states = encoder(**inputs).last_hidden_state
            for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
                labels = batch["labels"][i]
                row = {"inputs_embeds": states[i, :length].clone(), "labels": labels}
                rows.append({**row, "idx": batch["idx"][i]})
        return sorted(rows, key=lambda row: int(row["idx"]))

    @staticmethod
    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Pads to the longest."""
        states = nn.utils.rnn.pad_sequence([r["inputs_embeds"] for r in rows], batch_first=True)
        lengths = torch.tensor([len(row["inputs_embeds"]) for row in rows])
        mask = (torch.arange(states.shape[1]) < lengths[:, None]).long()
        stacked = {key: torch.stack([row[key] for row in rows]) for key in ("labels", "idx")}
        return {"inputs_embeds": states, "attention_mask": mask, **stacked}

    def loader(self, rows: list[dict[str, Tensor]], *, shuffle: bool) -> DataLoader[Any]:
        """Batches of similar length; the order depends on the seed and the epoch."""
        sampler = ShardedBatches(
            len(rows),
            self.batch_size if shuffle else 64,
            num_replicas=1,
            rank=0,
            shuffle=shuffle,
            seed=self.seed,
            lengths=[len(row["inputs_embeds"]) for row in rows],
        )
        return DataLoader(Rows(rows), batch_size=None, sampler=sampler, collate_fn=self.collate)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled."""
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The published dev set."""
        return self.loader(self.dev, shuffle=False)


class Study:
    """One task, one budget; `run` gives the scores of an arm."""

    def __init__(self, options: argparse.Namespace, features: Features, seed: int) -> None:
        self.options, self.seed, self.data = options, seed, features
        features.seed = seed
        self.common = {"task": options.task, "warmup_fraction": 0.06}
        self.adapter = {**self.common, "learning_rate": options.learning_rate}

    def student(self) -> nn.Module:
        """The top of the pre-trained encoder under a new head."""
        return top_of(self.options.student, self.options.task, self.options.top_layers)

    def head(self) -> dict[str, Scores]:
        """Nothing but the head learns."""
        return {"head only": self.train(FineTuning, train="head", **self.adapter)}

    def full(self) -> dict[str, Scores]:
        """Everything learns."""
        rate = self.options.full_learning_rate
        return {"full fine-tuning": self.train(FineTuning, **self.common, learning_rate=rate)}

    def dedicated(self, rank: int) -> dict[str, Scores]:
        """A LoRA of this rank; from the largest one also its cuts."""
        scores = self.train(LoRA, rank=rank, alpha=16.0, **self.adapter)
        found = {"LoRA": {str(rank): next(iter(scores.values()))}}
        return {**found, **self.cuts()} if rank == MAX_RANK else found

    def dynamic(self, update: str, scaling: str) -> dict[str, Scores]:
        """One DyLoRA run, all ranks."""
        settings = {"update": update, "scaling": scaling, "seed": self.seed}
        scores = self.train(DyLoRA, max_rank=MAX_RANK, **settings, **self.adapter)
        return {f"DyLoRA {update} {scaling}": scores}

    def train(self, method: type[TaskModule], **arguments: Any) -> Scores:
        """Train for the budget and evaluate the last weights: nothing is chosen."""
        L.seed_everything(self.seed, verbose=False)
        self.module = method(self.student(), **arguments)
        trainer = self.trainer(max_steps=self.options.steps, limit_val_batches=0)
        trainer.fit(self.module, datamodule=self.data)
        return self.evaluate(self.module)

    def evaluate(self, module: TaskModule) -> Scores:
        """Official metrics on the published dev set, by size."""
        self.trainer().validate(module, datamodule=self.data, verbose=False)
        return {str(size or "-"): e.values for (_, size), e in module.evaluations.items()}

    def cuts(self) -> dict[str, Scores]:
        """The LoRA just trained, used below its rank."""
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            self.module.export(Path(folder) / "adapter")
            for scaling in ("alpha/R", "alpha/b"):
                settings = {"scaling": scaling, "adapter": f"{folder}/adapter", **self.adapter}
                module = DyLoRA(self.student(), max_rank=MAX_RANK, **settings)
                found[f"LoRA-{MAX_RANK} cut {scaling}"] = self.evaluate(module)
                if scaling == "alpha/R":
                    for layer in module.adapters.values():
                        a, b = truncate_svd(layer.lora_A.data, layer.lora_B.data, MAX_RANK)
                        layer.lora_A.data.copy_(a)
                        layer.lora_B.data.copy_(b)
                    found[f"LoRA-{MAX_RANK} SVD cut"] = self.evaluate(module)
        return found

    @staticmethod
    def trainer(**arguments: Any) -> L.Trainer:
        """A quiet one."""
        quiet: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        return L.Trainer(
            accelerator="cpu", devices=1, enable_model_summary=False, **quiet, **arguments
        )


def arms() -> Iterator[tuple[str, Callable[[Study], dict[str, Scores]]]]:
    """Name and run of every arm; the interesting ones first."""
    for update, scaling in itertools.product(("frozen", "full"), ("alpha/b", "alpha/R")):
        name = f"dylora_{update}_{scaling.replace('/', '_')}"
        yield name, lambda s, u=update, c=scaling: s.dynamic(u, c)  # type: ignore[misc]
    for rank in reversed(RANKS):
        yield f"lora_{rank}", lambda s, r=rank: s.dedicated(r)  # type: ignore[misc]
    yield "head", Study.head
    yield "full", Study.full


def main() -> None:
    """Run what is not done yet."""
    options = parse()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    output: Path = options.output or Path("runs/dylora_study") / f"{options.task}.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = output.read_text().splitlines() if output.exists() else []
    done = {(record["arm"], record["seed"]) for record in map(json.loads, lines)}
    features = Features(options)
    for seed in range(options.seeds):
        for name, run in arms():
            if (name, seed) in done or (options.arms and name not in options.arms):
                continue
            start = perf_counter()
            scores = run(Study(options, features, seed))
            settings = {
                k: v for k, v in vars(options).items() if k not in ("output", "arms", "data_dir")
            }
            record = {"arm": name, "seed": seed, "seconds": perf_counter() - start}
            with output.open("a") as file:
                print(json.dumps({**record, "scores": scores, "settings": settings}), file=file)
            print(name, seed, f"{record['seconds']:.0f} s", json.dumps(scores), flush=True)


if __name__ == "__main__":
    main()
