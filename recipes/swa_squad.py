"""Stochastic weight averaging of fine-tuning on SQuAD. Settings: configs/swa_squad.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import SQuAD
from lightning_kd.methods import FineTuning

if __name__ == "__main__":
    run(FineTuning, SQuAD)
