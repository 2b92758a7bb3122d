"""Annealing-KD on GLUE. Settings: configs/annealing_kd_glue.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import GLUE
from lightning_kd.methods import AnnealingKD

if __name__ == "__main__":
    run(AnnealingKD, GLUE)
