"""DyLoRA of GPT-2 on WebNLG's triples. Settings: configs/dylora_webnlg.yaml."""

from lightning_kd.cli import run
from lightning_kd.data import WebNLG
from lightning_kd.methods import DyLoRA

if __name__ == "__main__":
    run(DyLoRA, WebNLG)
