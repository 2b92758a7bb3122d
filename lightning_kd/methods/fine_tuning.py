"""Fine-tuning: the baseline that every method is measured against.

Devlin et al. (NAACL 2019), arXiv 1810.04805. All weights learn the task, or only the head
(``train="head"``): the two ends between which adapters lie.
"""

from typing import Any, Literal

from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.methods.base import Batch, TaskModule
from lightning_kd.models import head_modules
from lightning_kd.paper import Paper
from lightning_kd.tasks import Task


class FineTuning(TaskModule):
    """Minimize the task's loss over all weights or the head's.

    Args:
        student: See `TaskModule`.
        task: See `TaskModule`.
        train: ``all`` weights, or the ``head`` alone over a frozen encoder.
        kwargs: See `TaskModule`.
    """

    paper = Paper(
        title="BERT: Pre-training of Deep Bidirectional Transformers",
        venue="NAACL 2019",
        arxiv="1810.04805",
        tasks="GLUE, SQuAD, HellaSwag, CIFAR, Alpaca",
        recipe="fine_tuning_glue",
    )

    def __init__(
        self,
        student: str | nn.Module,
        task: str | Task,
        train: Literal["all", "head"] = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(student, task, **kwargs)
        if train not in ("all", "head"):
            raise ValueError(f"train must be all or head, got {train!r}")
        if train == "head":
            self.student.requires_grad_(requires_grad=False)
            for name in head_modules(self.student):
                self.student.get_submodule(name).requires_grad_(requires_grad=True)

    @override
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        return {"hard": self.hard_term(batch)}
