"""The arms of label regularization: what each is called, and which options it reads."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

Regularizer = Literal["none", "label_smoothing", "tf_reg", "self_kd", "kd"]
SmoothOver = Literal["all", "wrong"]
Form = Literal["mixture", "kl", "released"]

TAUGHT = ("self_kd", "kd")
HAND_MADE = ("label_smoothing", "tf_reg")


def check_teacher(regularizer: str, given: bool, options: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a taught arm has no teacher, or another one has.

    Args:
        regularizer: The arm.
        given: Whether there is a teacher.
        options: Further ones, of which those of a teacher count.
    """
    if regularizer in TAUGHT and not given:
        what = "a fine-tuned copy of the student" if regularizer == "self_kd" else "a model"
        raise ValueError(f"regularizer={regularizer} needs a teacher, {what}; give --model.teacher")
    asked = [name for name in ("teacher_bits", "teacher_cache") if options.get(name) is not None]
    asked = [*(["teacher"] if given else []), *asked]
    if asked and regularizer not in TAUGHT:
        raise ValueError(
            f"regularizer={regularizer} has no teacher; drop {', '.join(asked)}, or use kd"
        )


def check_read(regularizer: str, form: str | None, given: Mapping[str, Any]) -> None:
    """Raise `ValueError` for an option that would be ignored; one that is None was not given."""
    read = {"label_smoothing": ["smooth_over"], "tf_reg": ["gold", "form"]}.get(regularizer, [])
    if regularizer in TAUGHT:
        read = ["temperature", "tau_squared"]
    elif regularizer == "tf_reg" and form == "released":
        read = [*read, "temperature", "multiplier"]
    for name, value in given.items():
        if value is not None and name not in read:
            its = f"its options are alpha, {', '.join(read)}" if read else "it has none"
            arm = f"regularizer={regularizer}" + (f" with form={form}" if form else "")
            raise ValueError(f"{arm} does not read {name}={value}; {its}")


def check_copy(student: nn.Module, teacher: nn.Module) -> None:
    """Raise `ValueError` where a teacher is not the student's architecture."""
    ours, theirs = (dict(model.named_parameters()) for model in (student, teacher))
    other = sorted(ours.keys() ^ theirs.keys())
    # 4-bit weights are packed: their shapes say nothing
    numbers = [name for name in ours if name in theirs and theirs[name].is_floating_point()]
    other += [name for name in numbers if ours[name].shape != theirs[name].shape]
    if other:
        raise ValueError(
            "self_kd is taught by a copy of the student, but this teacher is another network (see "
            f"{other[0]}); give the fine-tuned student, or use regularizer=kd"
        )


__all__ = [
    "HAND_MADE",
    "TAUGHT",
    "Form",
    "Regularizer",
    "SmoothOver",
    "check_copy",
    "check_read",
    "check_teacher",
]
