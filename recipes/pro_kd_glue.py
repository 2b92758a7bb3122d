"""Pro-KD on GLUE. Settings: configs/pro_kd_glue.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import GLUE
from lightning_kd.methods import ProKD

if __name__ == "__main__":
    run(ProKD, GLUE)
