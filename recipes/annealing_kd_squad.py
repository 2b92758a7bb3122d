"""Annealing-KD on SQuAD 1.1 or 2.0. Settings: configs/annealing_kd_squad.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import SQuAD
from lightning_kd.methods import AnnealingKD

if __name__ == "__main__":
    run(AnnealingKD, SQuAD)
