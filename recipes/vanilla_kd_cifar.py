"""Distillation on CIFAR. Settings: configs/vanilla_kd_cifar.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import CIFAR
from lightning_kd.methods import VanillaKD

if __name__ == "__main__":
    run(VanillaKD, CIFAR)
