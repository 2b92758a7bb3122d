"""Pro-KD on SQuAD 1.1 or 2.0. Settings: configs/pro_kd_squad.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import SQuAD
from lightning_kd.methods import ProKD

if __name__ == "__main__":
    run(ProKD, SQuAD)
