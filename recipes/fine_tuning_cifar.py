"""Training on CIFAR. Settings: configs/fine_tuning_cifar.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import CIFAR
from lightning_kd.methods import FineTuning

if __name__ == "__main__":
    run(FineTuning, CIFAR)
