"""Tiny trajectories: folders with checkpoints that a network might have come by."""

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_kd.models import load_model
from lightning_kd.tasks import Task, task_named
from lightning_kd.teacher_cache import fingerprint_of
from lightning_kd.trajectory import TeacherTrajectory


def table(*logits: float) -> dict[str, Tensor]:
    """Weights of `tests.methods.lookup.Lookup` for one example."""
    return {"logits": torch.tensor([logits], dtype=torch.float32)}


def recorded(folder: Path, *states: dict[str, Tensor], labels: Any = None) -> str:
    """A folder with these weights, one an epoch of ten steps."""
    made = TeacherTrajectory(folder, "by hand", labels)
    for epoch, state in enumerate(states):
        made = made.recorded(state, epoch=epoch, step=10 * (epoch + 1))
    return str(folder)


_MADE: dict[str, str] = {}


def trajectory(network: nn.Module, task: str | Task = "sst2") -> str:
    """A folder with half of a network's weights and then the network itself."""
    spec = task_named(task) if isinstance(task, str) else task
    labels = getattr(spec, "labels", None)
    key = f"{fingerprint_of(network)[:16]} {labels}"
    if key not in _MADE:
        folder = Path(tempfile.mkdtemp(prefix="lightning-kd-trajectory-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        if hasattr(network, "config"):
            network.config.save_pretrained(folder)  # type: ignore[operator, union-attr]
        made = TeacherTrajectory(folder, key[:16], labels, "val/accuracy")
        whole = network.state_dict()
        half = {name: v / 2 if v.is_floating_point() else v for name, v in whole.items()}
        made = made.recorded(half, epoch=0, step=3, metric=0.5)
        made.recorded(whole, epoch=1, step=6, metric=0.9)
        _MADE[key] = str(folder)
    return _MADE[key]


def followed(settings: dict[str, Any], task: str | Task) -> dict[str, Any]:
    """Arguments of Pro-KD with the trajectory of their teacher, where they have none."""
    teacher = settings["teacher"]
    if "trajectory" not in settings:
        spec = task_named(task) if isinstance(task, str) else task
        network = load_model(teacher, spec) if isinstance(teacher, str) else teacher
        return {**settings, "trajectory": trajectory(network, spec)}
    return settings
