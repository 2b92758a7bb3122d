"""DyLoRA of GPT-2 on E2E's restaurants. Settings: configs/dylora_e2e.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import E2E
from lightning_kd.methods import DyLoRA

if __name__ == "__main__":
    run(DyLoRA, E2E)
