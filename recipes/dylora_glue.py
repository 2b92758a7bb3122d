"""DyLoRA on GLUE: one adapter, every rank. Settings: configs/dylora_glue.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import GLUE
from lightning_kd.methods import DyLoRA

if __name__ == "__main__":
    run(DyLoRA, GLUE)
