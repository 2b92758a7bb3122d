"""Tasks: what a benchmark asks and how an answer is scored, so that no method has to know.

A *task* turns a model's output into a `Prediction`, prices it (hard and soft losses, one value per
example) and scores it (the benchmark's official metrics). A loss written once against it serves
every kind of benchmark. Letters in shapes: ``b`` batch, ``s`` sites (places in an example
where an answer is given), ``c`` classes.
"""

from lightning_kd.tasks.base import Prediction, Task, best_of
from lightning_kd.tasks.choice import MultipleChoice
from lightning_kd.tasks.images import Image
from lightning_kd.tasks.labels import Classification, Regression
from lightning_kd.tasks.language import CausalLM
from lightning_kd.tasks.spans import SpanQA


def task_named(name: str) -> Task:
    """The task that a benchmark publishes under ``name``.

    Raises:
        ValueError: No benchmark has it; the message lists all names.

    >>> task_named("mrpc").metric_names
    ('accuracy', 'f1')
    """
    from lightning_kd.data import BENCHMARKS  # the data modules import this one

    tasks = {key: task for benchmark in BENCHMARKS for key, task in benchmark.tasks.items()}
    if name not in tasks:
        raise ValueError(f"there is no task {name!r}; choose from {', '.join(sorted(tasks))}")
    return tasks[name]


__all__ = [
    "CausalLM",
    "Classification",
    "Image",
    "MultipleChoice",
    "Prediction",
    "Regression",
    "SpanQA",
    "Task",
    "best_of",
    "task_named",
]
