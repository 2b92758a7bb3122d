import sys
from lightning.pytorch.cli import LightningCLI
import lightning as L, torch
from tests.test_progress import Tiny
def test_cli(tmp_path, monkeypatch):
    LightningCLI(Tiny, run=True, args=["fit","--trainer.accelerator=cpu",f"--trainer.default_root_dir={tmp_path}","--trainer.max_epochs=1","--trainer.logger=false","--trainer.enable_checkpointing=false","--trainer.log_every_n_steps=1",
     "--trainer.callbacks=lightning_kd.callbacks.Anneal","--trainer.callbacks.schedules={foo: {class_path: Constant, init_args: {value: 1}}}"])
