"""Label regularization on GLUE, one arm. Settings: configs/label_regularization_glue.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import GLUE
from lightning_kd.methods import LabelRegularization

if __name__ == "__main__":
    run(LabelRegularization, GLUE)
