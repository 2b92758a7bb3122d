"""What `lightning-kd plan` prints."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_kd.planning.advice import Option, notes, options
from lightning_kd.planning.gpus import GB, GPU
from lightning_kd.planning.memory import LIMIT, Plan, largest_batch, plan_memory
from lightning_kd.planning.recipe import classes_of, settings_of, training_of


def show(recipe: Path, gpu: GPU, overrides: Sequence[str] = ()) -> bool:
    """Print a recipe's plan, the verdict and the way out; whether it fits."""
    method, data = classes_of(recipe)
    settings = settings_of(recipe, method, data, overrides)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries about a model that is never used
        training = training_of(method, data, settings, gpu)
        plan = plan_memory(training)
        fits = plan.free(gpu.memory) >= 0
        most = largest_batch(training, gpu.memory)
        ways = [] if fits else options(training, settings, gpu)
    console = Console(highlight=False)
    title = f"{method.__name__}, {recipe.stem}: {training.batch_size} x {training.length}"
    console.print(table_of(plan, f"{title}, {training.precision}"))
    console.print(verdict(plan, gpu))
    batch = f"{most} or more" if most == LIMIT else most
    console.print(f"largest batch that fits: {batch}" if most else "not even one example fits")
    for note in notes(training, plan):
        console.print(f"note: {note}")
    for option in ways:
        console.print(line_of(option, gpu))
    return fits


def table_of(plan: Plan, title: str) -> Table:
    """Parts, their bytes and their share."""
    table = Table("part", title=title)
    for name in ("bytes", "GB", "share"):
        table.add_column(name, justify="right")
    for name, size in plan.parts.items():
        table.add_row(name, f"{size:,}", f"{size / GB:.3f}", f"{size / plan.total:.1%}")
    table.add_section()
    table.add_row("peak", f"{plan.total:,}", f"{plan.total / GB:.3f}", "100%")
    return table


def verdict(plan: Plan, gpu: GPU) -> str:
    """One line: whether it fits, and by how much."""
    free = plan.free(gpu.memory)
    has = f"{gpu.name} ({gpu.memory / GB:.2f} GB)"
    if free >= 0:
        return f"fits on one {has}: {free / GB:.2f} GB are left"
    return f"does not fit on one {has}: {-free / GB:.2f} GB are missing"


def line_of(option: Option, gpu: GPU) -> str:
    """What an option makes of it."""
    fits = "fits" if option.plan.free(gpu.memory) >= 0 else "not enough"
    return f"  {option.words}: {option.plan.total / GB:.2f} GB, {fits}"


__all__ = ["line_of", "show", "table_of", "verdict"]
