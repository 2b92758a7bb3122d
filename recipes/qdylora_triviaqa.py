"""QDyLoRA of a language model on TriviaQA's questions. Settings: configs/qdylora_triviaqa.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import TriviaQA
from lightning_kd.methods import QDyLoRA

if __name__ == "__main__":
    run(QDyLoRA, TriviaQA)
