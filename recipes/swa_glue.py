"""Stochastic weight averaging of fine-tuning on GLUE. Settings: configs/swa_glue.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import GLUE
from lightning_kd.methods import FineTuning

if __name__ == "__main__":
    run(FineTuning, GLUE)
