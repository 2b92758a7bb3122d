"""Continuation-KD on CIFAR. Settings: configs/continuation_kd_cifar.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import CIFAR
from lightning_kd.methods import ContinuationKD

if __name__ == "__main__":
    run(ContinuationKD, CIFAR)
