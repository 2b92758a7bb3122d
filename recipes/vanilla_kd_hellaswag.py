"""Knowledge distillation on HellaSwag. Settings: configs/vanilla_kd_hellaswag.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import HellaSwag
from lightning_kd.methods import VanillaKD

if __name__ == "__main__":
    run(VanillaKD, HellaSwag)
