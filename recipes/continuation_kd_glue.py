"""Continuation-KD on GLUE. Settings: configs/continuation_kd_glue.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import GLUE
from lightning_kd.methods import ContinuationKD

if __name__ == "__main__":
    run(ContinuationKD, GLUE)
