"""SoFT on closed-book TriviaQA: exits that know facts. Settings: configs/soft_triviaqa.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import TriviaQA
from lightning_kd.methods import SoFT

if __name__ == "__main__":
    run(SoFT, TriviaQA)
