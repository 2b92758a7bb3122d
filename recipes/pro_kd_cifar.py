"""Pro-KD on CIFAR. Settings: configs/pro_kd_cifar.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import CIFAR
from lightning_kd.methods import ProKD

if __name__ == "__main__":
    run(ProKD, CIFAR)
