"""How long does it take to change the rank of a whole model?

DyLoRA changes it before every training step and for every rank that it evaluates. Measured on
BERT-shaped encoders of 12 and 24 layers (24 and 48 adapters on query and value), and on the MiniLM
encoder. A rank is a number that the layers read, so nothing is copied.

    python benchmarks/rank_switch.py
"""

from typing import Any

import torch

from benchmarks.common import Check, Spread, interleaved, parser, report, start
from lightning_kd.methods import DyLoRA
from lightning_kd.models import load_model
from lightning_kd.tasks import task_named

LIMIT_MS = 1.0
CALLS = 100


def bert(layers: int) -> DyLoRA:
    """Narrow, because the width of a layer does not matter here."""
    from transformers import BertConfig

    narrow: dict[str, Any] = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    config: Any = BertConfig(num_hidden_layers=layers, vocab_size=100, **narrow)
    return DyLoRA(student=load_model(config, task_named("sst2")), task="sst2")


def main() -> None:
    """Measure and report."""
    given = parser(__doc__, rounds=50).parse_args()
    start(given)
    modules = {
        "MiniLM": DyLoRA(student=given.student, task="sst2"),
        "12 layers": bert(12),
        "24 layers": bert(24),
    }
    ranks = torch.randint(1, 9, (CALLS,)).tolist()

    def switch(module: DyLoRA) -> None:
        for rank in ranks:
            module.resize(rank)

    seconds = interleaved({n: lambda m=m: switch(m) for n, m in modules.items()}, given)  # type: ignore[misc]
    print("milliseconds to switch a model to another rank")
    checks = []
    for name, values in seconds.items():
        spread = Spread.of(values).scaled(1e3 / CALLS)
        print(f"{len(modules[name].adapters):>4} adapters ({name}) | {spread}")
        checks.append(Check(f"{name}, {len(modules[name].adapters)} adapters", spread, LIMIT_MS))
    slowest = max(checks, key=lambda check: check.ratio.median)
    report("rank_switch", slowest, *(c for c in checks if c is not slowest), unit="ms")


if __name__ == "__main__":
    main()
