"""LoRA of a language model on instructions. Settings: configs/lora_alpaca.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import Instructions
from lightning_kd.methods import LoRA

if __name__ == "__main__":
    run(LoRA, Instructions)
