"""QDyLoRA of a language model on GSM8k's problems. Settings: configs/qdylora_gsm8k.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import GSM8K
from lightning_kd.methods import QDyLoRA

if __name__ == "__main__":
    run(QDyLoRA, GSM8K)
