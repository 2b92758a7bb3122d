"""Fine-tuning on GLUE: all weights, or the head alone. Settings: configs/fine_tuning_glue.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import GLUE
from lightning_kd.methods import FineTuning

if __name__ == "__main__":
    run(FineTuning, GLUE)
