"""LoRA (PEFT) on GLUE: the baseline of one rank. Settings: configs/lora_glue.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import GLUE
from lightning_kd.methods import LoRA

if __name__ == "__main__":
    run(LoRA, GLUE)
