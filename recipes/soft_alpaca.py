"""SoFT on Alpaca: a language model that may end early. Settings: configs/soft_alpaca.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import Instructions
from lightning_kd.methods import SoFT

if __name__ == "__main__":
    run(SoFT, Instructions)
