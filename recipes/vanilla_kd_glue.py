"""Knowledge distillation on GLUE. Settings: configs/vanilla_kd_glue.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import GLUE
from lightning_kd.methods import VanillaKD

if __name__ == "__main__":
    run(VanillaKD, GLUE)
