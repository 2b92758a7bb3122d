"""Fine-tuning on SQuAD 1.1 or 2.0. Settings: configs/fine_tuning_squad.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import SQuAD
from lightning_kd.methods import FineTuning

if __name__ == "__main__":
    run(FineTuning, SQuAD)
