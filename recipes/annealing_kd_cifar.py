"""Annealing-KD on CIFAR. Settings: configs/annealing_kd_cifar.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import CIFAR
from lightning_kd.methods import AnnealingKD

if __name__ == "__main__":
    run(AnnealingKD, CIFAR)
