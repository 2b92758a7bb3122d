"""QDyLoRA of a language model on instructions. Settings: configs/qdylora_alpaca.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import Instructions
from lightning_kd.methods import QDyLoRA

if __name__ == "__main__":
    run(QDyLoRA, Instructions)
