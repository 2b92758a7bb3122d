"""A model that is a table of logits, for methods whose losses are computed by hand."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_kd.tasks import Classification

THREE = Classification("three", ("a", "b", "c"))
TEACHER = torch.tensor([[2.0, -1.0, 0.0], [0.5, 1.5, -3.0]])
STUDENT = torch.tensor([[0.3, -0.1, 0.0], [0.0, 0.4, -0.6]])
"""The logits of the acceptance checks of Annealing-KD and Continuation-KD."""


class Lookup(nn.Module):
    """Answers ``input_ids`` ``[b, 1]`` with the rows of a table, which trains.

    Attributes:
        calls: How often it was asked.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.calls = 0

    def forward(self, input_ids: Tensor, **more: Any) -> SimpleNamespace:
        self.calls += 1
        return SimpleNamespace(logits=self.logits[input_ids[:, 0]])


def rows(labels: Tensor) -> dict[str, Tensor]:
    """The whole table as one batch."""
    idx = torch.arange(len(labels))
    return {"input_ids": idx[:, None], "labels": labels, "idx": idx}
