"""Distillation with wrong labels on GLUE. Settings: configs/noisy_label_kd_glue.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import GLUE
from lightning_kd.methods import NoisyLabelKD

if __name__ == "__main__":
    run(NoisyLabelKD, GLUE)
