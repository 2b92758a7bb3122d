"""Fine-tuning on HellaSwag. Settings: configs/fine_tuning_hellaswag.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import HellaSwag
from lightning_kd.methods import FineTuning

if __name__ == "__main__":
    run(FineTuning, HellaSwag)
