"""What is on a picture."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.tasks.base import Prediction
from lightning_kd.tasks.labels import Classification


class Image(Classification):
    """Choose one of ``labels`` for an image: ``pixel_values`` ``[b, channels, h, w]``.

    The model is one of transformers' image classifiers, or a module that maps pixels to logits
    such as `lightning_kd.nn.CifarResNet`.

    >>> Image("digits", labels=[str(digit) for digit in range(10)], num_channels=1).num_labels
    10
    """

    auto_class = "AutoModelForImageClassification"

    def __init__(
        self,
        name: str,
        labels: Sequence[str],
        metrics: Sequence[str] = ("accuracy",),
        eval_sets: Sequence[str] = ("",),
        num_channels: int = 3,
    ) -> None:
        super().__init__(name, labels, metrics, eval_sets)
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}")
        self.num_channels = num_channels

    @override
    def predict(
        self, model: nn.Module, batch: dict[str, Tensor], hidden_states: bool = False
    ) -> Prediction:
        if not hidden_states:
            return Prediction(self._logits(model(batch["pixel_values"])))
        if not hasattr(model, "get_input_embeddings"):  # not of transformers
            raise ValueError(
                f"{type(model).__name__} has no hidden states to give; take an image classifier of "
                "transformers"
            )
        output = model(batch["pixel_values"], output_hidden_states=True)
        return Prediction(self._logits(output), output.hidden_states)

    @override
    def _logits(self, output: Any) -> Float[Tensor, "b classes"]:
        return output if isinstance(output, torch.Tensor) else output.logits


__all__ = ["Image"]
