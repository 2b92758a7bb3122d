"""Tiny models, data and methods: everything a test needs to run a method in milliseconds.

`METHODS` holds one constructor per method and `ARGUMENTS` another value of each argument; the
conformance matrix fails on what is missing.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import lightning as L
import torch
from torch import nn

from lightning_kd.methods import (
    AnnealingKD,
    ContinuationKD,
    DyLoRA,
    FineTuning,
    LabelRegularization,
    LoRA,
    NoisyLabelKD,
    ProKD,
    QDyLoRA,
    SoFT,
    TaskModule,
    VanillaKD,
)
from lightning_kd.paper_schedules import StepPsi
from lightning_kd.tasks import CausalLM, Task
from tests.tiny_data import (
    TASKS,
    VOCABULARY,
    WORDS,
    batch,
    digits_folder,
    films_folder,
    hellaswag_folder,
    loader,
    spans,
    squad_folder,
    sst2_folder,
    tokenizer_folder,
    trivia_folder,
    writer_tokenizer,
)
from tests.tiny_models import config, model, model_folder, named_model, writer_folder
from tests.trajectories import followed

__all__ = [  # of tests/tiny_data.py and tests/tiny_models.py, where a test may as well find them
    "TASKS", "VOCABULARY", "WORDS", "batch", "config", "digits_folder", "films_folder",
    "hellaswag_folder", "loader", "model", "model_folder", "named_model", "spans", "squad_folder",
    "sst2_folder", "tokenizer_folder", "trivia_folder", "writer_folder", "writer_tokenizer",
]  # fmt: skip

Made = TypeVar("Made", bound=nn.Module)
ONLY_WRITE = ("SoFT",)
WRITE = ("DyLoRA", "FineTuning", "LoRA", "QDyLoRA", "VanillaKD", *ONLY_WRITE)
NOT_CLAIMED = dict.fromkeys(("DyLoRA", "LoRA", "QDyLoRA"), ("images",))
"""Kinds of tasks that a method is not for, by its name: a ResNet has no layers to adapt.

Of texts it is the methods that are for them which are named, in `WRITE`, and those that are for
nothing else, in `ONLY_WRITE`.
"""


def taught(task: str | Task, sure: bool = False) -> dict[str, Any]:
    """Arguments of a method that has a teacher: other random weights, or one with large logits."""
    spec = TASKS["classification"] if isinstance(task, str) else task
    return {"teacher": skilled_teacher(spec) if sure else model("bert", spec, seed=1)}


SHORT_STAGES = {"max_temperature": 3, "teacher_epochs": 3, "label_epochs": 2}

METHODS: dict[str, Callable[..., TaskModule]] = {
    "AnnealingKD": lambda student, task, **k: AnnealingKD(
        student, task, **{**taught(task), **SHORT_STAGES, **k}
    ),
    "ContinuationKD": lambda student, task, **k: ContinuationKD(
        student, task, **{**taught(task, sure=True), "max_temperature": 2, "margin": 0.0, **k}
    ),
    "DyLoRA": lambda student, task, **k: DyLoRA(student, task, **{"max_rank": 4, **k}),
    "FineTuning": FineTuning,
    "LabelRegularization": lambda student, task, **k: LabelRegularization(
        student, task, **{"regularizer": "kd", "alpha": 0.5, **taught(task), **k}
    ),
    "LoRA": lambda student, task, **k: LoRA(student, task, **{"rank": 4, **k}),
    "NoisyLabelKD": lambda student, task, **k: NoisyLabelKD(student, task, **{**taught(task), **k}),
    "ProKD": lambda student, task, **k: ProKD(
        student, task, **followed({**taught(task), **SHORT_STAGES, "teacher_epochs": 2, **k}, task)
    ),
    "SoFT": lambda student, task, **k: SoFT(student, task, **{"exits": [1, 2], **k}),
    "QDyLoRA": lambda student, task, **k: QDyLoRA(
        student,
        task,
        **{"max_rank": 4, "alpha": 1.0, "dropout": 0.0, "backend": "reference", **k},
    ),
    "VanillaKD": lambda student, task, **k: VanillaKD(student, task, **{**taught(task), **k}),
}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "TaskModule": {
        "task": TASKS["regression"],
        "learning_rate": 0.1,
        "weight_decay": 0.9,
        "warmup_fraction": 0.5,
        "lr_schedule": "constant",
    },
    "AnnealingKD": {
        "max_temperature": 2,
        "schedule": "constant",
        "reduction": "sum",
        "center_logits": True,
    },
    "ContinuationKD": {
        "margin": 30.0,
        "psi": StepPsi(1),
        "max_temperature": 1,
        "schedule": "alg1",
        "anneal_teacher": False,
        "reduction": "mean",
    },
    "DyLoRA": {
        "max_rank": 3,
        "min_rank": 3,
        "alpha": 1.0,
        "scaling": "alpha/R",
        "update": "full",
        "sampler": [2, 4],
        "optimizer_semantics": "dense",
        "dropout": 0.5,
        "seed": 7,
    },
    "FineTuning": {"train": "head"},
    "LabelRegularization": {"alpha": 0.1, "temperature": 9.0, "tau_squared": False},
    "LoRA": {"rank": 2, "alpha": 1.0, "rslora": True, "dropout": 0.5},
    "NoisyLabelKD": {"alpha": 0.1, "temperature": 9.0, "hard_loss": "mae"},
    "ProKD": {
        "num_checkpoints": 1,
        "min_metric": 0.7,
        "max_temperature": 2,
        "loss": "kl",
        "alpha": 0.5,
        "smoothing": False,
        "order": "reversed",
        "reduction": "sum",
    },
    "SoFT": {
        "exits": [2],
        "loss": "random",
        "head": "per_exit",
        "train": "heads",
    },
    "QDyLoRA": {
        "alpha": 16.0,
        "update": "frozen",
        "optimizer_semantics": "strict",
        "lr_schedule": "linear",
        "quantization": "fp4",
        "double_quant": False,
        "compute_dtype": "bfloat16",
    },
    "VanillaKD": {"alpha": 0.1, "temperature": 9.0, "loss": "mse"},
}
"""Another value of each constructor argument: training with it must end elsewhere than without.

Arguments with another effect are in `tests/conformance/arguments.py`.
"""


CACHED = tuple(kind for kind, task in sorted(TASKS.items()) if not isinstance(task, CausalLM))
"""Kinds of tasks whose answers a teacher's cache keeps: a vocabulary for each token is too much."""


def claims(name: str, kind: str) -> bool:
    """Whether a method is for tasks of this kind."""
    if name in ONLY_WRITE or kind == "text":
        return kind == "text" and name in WRITE
    return kind not in NOT_CLAIMED.get(name, ())


def task_for(name: str) -> Task:
    """The task on which a method is tried where any does: classification, if it is for that."""
    return TASKS["text" if name in ONLY_WRITE else "classification"]


def method(
    name: str,
    task: Task | None = None,
    seed: int = 0,
    *,
    batch_norm: bool = True,
    spread: float = 0.02,
    **k: Any,
) -> TaskModule:
    """A method on a tiny BERT (ResNet, Llama); equal arguments give equal weights.

    Without ``batch_norm`` no example has a part in the answers to others. ``spread`` is the
    deviation of a Llama's weights.
    """
    task = task or task_for(name)
    student = model("bert", task, seed, batch_norm=batch_norm, spread=spread)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return METHODS[name](student, task, **k)


def filled(module: Made, seed: int = 0) -> Made:
    """The module itself with random ``lora_B`` and head: an adapter that does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    """A trainer on one CPU that prints and writes nothing; two epochs unless told otherwise."""
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    quiet |= {"num_sanity_val_steps": 0, "max_epochs": 2}
    return L.Trainer(accelerator="cpu", callbacks=list(callbacks), **{**quiet, **options})


def skilled_teacher(task: Task) -> nn.Module:
    """A network that answers the first four examples (``batch(4)``) as they are labelled."""
    return copy.deepcopy(_skilled_teacher(task))  # its own: a test may turn it into float64


@cache
def _skilled_teacher(task: Task) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        teacher = model("bert", task, seed=1).train()
        optimizer = torch.optim.AdamW(teacher.parameters(), lr=0.05, weight_decay=0.0)
        examples = batch(4, task)
        for _ in range(60):
            optimizer.zero_grad()
            task.hard_loss(task.predict(teacher, examples), examples).mean().backward()
            optimizer.step()
    teacher.zero_grad()
    return teacher
