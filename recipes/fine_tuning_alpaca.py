"""Fine-tuning of a language model on instructions. Settings: configs/fine_tuning_alpaca.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import Instructions
from lightning_kd.methods import FineTuning

if __name__ == "__main__":
    run(FineTuning, Instructions)
