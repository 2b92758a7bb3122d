"""TextBrewer's distiller, set up as our `VanillaKD` with equal weights; a peer of two benchmarks.

pip install --no-deps textbrewer==0.2.1.post1   # also in the `bench` extra
"""

import tempfile
from typing import Any

from torch import nn

TEMPERATURE = 2.0


def distiller(teacher: nn.Module, student: nn.Module, *, caching: bool) -> Any:
    """A ``BasicDistiller`` whose ``train_on_batch`` gives the loss of a batch with labels."""
    from textbrewer import BasicDistiller, DistillationConfig, TrainingConfig

    return BasicDistiller(
        TrainingConfig(device="cpu", log_dir=None, output_dir=tempfile.mkdtemp()),
        DistillationConfig(
            temperature=TEMPERATURE,
            hard_label_weight=0.5,
            kd_loss_weight=0.5,
            kd_loss_type="ce",
            is_caching_logits=caching,
        ),
        teacher,
        student,
        lambda _, output: {"logits": [output.logits]},
        lambda _, output: {"logits": [output.logits], "losses": [output.loss]},
    )
