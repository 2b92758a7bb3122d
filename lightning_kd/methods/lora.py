"""LoRA by PEFT: the baseline of the dynamic adapters.

Hu et al. (ICLR 2022), arXiv 2106.09685. The layers are PEFT's own, so that a comparison with this
class is a comparison with what users run.
"""

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from lightning_kd.export import atomic_directory
from lightning_kd.methods.adapter import AdapterModule
from lightning_kd.methods.base import Batch
from lightning_kd.models import task_heads
from lightning_kd.nn.dynamic_lora import check_lora
from lightning_kd.paper import Paper
from lightning_kd.tasks import Task


class LoRA(AdapterModule):
    """A low-rank adapter of one fixed rank.

    Args:
        student: See `TaskModule`.
        task: See `TaskModule`.
        rank: Components of every adapter, at least 1.
        alpha: The factor is ``alpha / rank``.
        rslora: Use ``alpha / sqrt(rank)`` instead.
        target_modules: PEFT's vocabulary; None is PEFT's choice for the architecture.
        modules_to_save: Modules trained whole; None is the task head (and BERT's pooler), none of a
                language model.
        dropout: Of the adapter's input, in [0, 1).
        kwargs: See `TaskModule`.
    """

    paper = Paper(
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        venue="ICLR 2022",
        arxiv="2106.09685",
        tasks="GLUE, Alpaca",
        recipe="lora_glue",
        result="SST-2 95.1 (RoBERTa-base, r=8, LoRA README)",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a user sets on the command line
        self,
        student: str | nn.Module,
        task: str | Task,
        rank: int = 8,
        alpha: float = 16.0,
        rslora: bool = False,
        target_modules: str | list[str] | None = None,
        modules_to_save: list[str] | None = None,
        dropout: float = 0.0,
        learning_rate: float = 4e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, task, learning_rate=learning_rate, **kwargs)
        from peft import LoraConfig, TaskType, get_peft_model

        if type(rank) is not int or rank < 1:
            raise ValueError(f"rank must be a whole number of at least 1, got {rank}")
        check_lora(alpha, dropout)
        heads = task_heads(self.student, self.task) if modules_to_save is None else modules_to_save
        kind = self.task.peft_type
        config = LoraConfig(
            task_type=None if kind is None else TaskType(kind),
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT computes with any number
            use_rslora=rslora,
            target_modules=target_modules,
            modules_to_save=heads,
            lora_dropout=dropout,
        )
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5 for a property that it renamed.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            self.student = get_peft_model(self.student, config)

    @override
    def objective(self, batch: Batch) -> dict[str, Tensor]:
        return {"hard": self.hard_term(batch)}

    def export(self, directory: Path, size: int | None = None) -> None:
        """Write the PEFT folder."""
        del size
        with atomic_directory(directory) as folder:
            self.student.save_pretrained(folder)  # type: ignore[operator]
