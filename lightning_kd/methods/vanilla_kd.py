"""Knowledge distillation: the soft answers of a teacher beside the labels.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (NIPS 2014 workshop), arXiv
1503.02531, section 2. The weight ``alpha`` is the teacher's; other texts weight the labels. With
``loss="mse"`` the student regresses the teacher's logits instead (Ba and Caruana 2014), a control
that every other method has to beat. Teacher assistants (Mirzadeh et al., AAAI 2020) are runs in a
chain: the student of one is the ``teacher`` of the next.
"""

from typing import Any, Literal

from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.functional import logit_mse
from lightning_kd.methods.base import Batch
from lightning_kd.methods.distillation import DistillationModule
from lightning_kd.paper import Paper
from lightning_kd.tasks import Task


class VanillaKD(DistillationModule):
    r"""Minimize :math:`(1 - \alpha) L_{hard} + \alpha L_{soft}`.

    Args:
        student: See `TaskModule`.
        task: See `TaskModule`.
        teacher: See `DistillationModule`.
        alpha: Weight of the teacher in [0, 1]; 0 is fine-tuning, 1 ignores the labels.
        temperature: Softens both distributions of the KL divergence, above 0; the term has the
            factor :math:`\tau^2`, so that its gradient keeps its size.
        loss: ``kl``: the task's soft loss; ``mse``: mean squared difference of the logits.
        kwargs: See `DistillationModule`.

    Raises:
        ValueError: A value outside of its range.
    """

    paper = Paper(
        title="Distilling the Knowledge in a Neural Network",
        venue="NIPS 2014 workshop",
        arxiv="1503.02531",
        tasks="GLUE, SQuAD, HellaSwag, CIFAR",
        recipe="vanilla_kd_glue",
        ours="reviews: 71.2 ± 1.4, labels alone 70.3 ± 1.5 (docs/evidence/distillation.md)",
    )

    def __init__(
        self,
        student: str | nn.Module,
        task: str | Task,
        teacher: str | nn.Module,
        alpha: float = 0.5,
        temperature: float = 2.0,
        loss: Literal["kl", "mse"] = "kl",
        **kwargs: Any,
    ) -> None:
        super().__init__(student, task, teacher, **kwargs)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if loss not in ("kl", "mse"):
            raise ValueError(f"loss must be kl or mse, got {loss!r}")
        self.alpha, self.temperature, self.loss = alpha, temperature, loss

    @property
    @override
    def asks_teacher(self) -> bool:
        return self.alpha > 0

    @override
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        student = self.predict(batch)
        terms = {}
        if self.alpha < 1:
            hard = self.task.reduce(self.task.hard_loss(student, batch), batch)
            terms["hard"] = (1 - self.alpha) * hard
        if self.asks_teacher:
            taught = self.teach(batch)
            if self.loss == "kl":
                soft = self.task.soft_loss(student, taught, batch, self.temperature)
            else:
                mask = self.task.logit_mask(batch)
                distance = logit_mse(student.logits, taught.logits, mask)
                soft = self.task.per_example(distance, batch)
            terms["soft"] = self.alpha * self.task.reduce(soft, batch)
        return terms


__all__ = ["VanillaKD"]
