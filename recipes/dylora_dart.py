"""DyLoRA of GPT-2 on DART's triples. Settings: configs/dylora_dart.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import DART
from lightning_kd.methods import DyLoRA

if __name__ == "__main__":
    run(DyLoRA, DART)
