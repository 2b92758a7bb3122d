"""What a run leaves behind as numbers: one record, the same for every method.

``summary.json`` holds exactly the keys of :meth:`Summary.to_json`. What is only needed to draw and
to choose while the run is at hand (standard errors, seconds per size, what a size is called) is
not part of the file, so a summary that was read back does not have it.
"""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any, Self

import torch

from lightning_kd import __version__

PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "peft",
    "datasets",
    "torchmetrics",
)
SUMMARY_TYPES: Mapping[str, tuple[type, ...]] = {
    "method": (str,),
    "benchmark": (str,),
    "task": (str,),
    "model": (str,),
    "seed": (int,),
    "seconds": (int, float, NoneType),
    "environment": (dict,),
    "data_sha256": (str,),
    "results": (list,),
}
OPTIONAL_TYPES: Mapping[str, tuple[type, ...]] = {"notes": (dict,)}
RESULT_TYPES: Mapping[str, tuple[type, ...]] = {
    "size": (int, NoneType),
    "split": (str,),
    "metric": (str,),
    "value": (int, float, NoneType),
    "trainable_parameters": (int,),
}


@dataclass(frozen=True)
class Result:
    """One number: a metric on a split at a size.

    Args:
        size: rank, layer ...; None for a method that has no sizes.
        split: as the data module names it, such as ``validation_mismatched``.
        metric: as the task names it; `lightning_kd.tasks.best_of` says which way is better.
        value: of the metric; NaN or infinite when the model diverged.
        trainable_parameters: of the model at this size.
        seconds: wall time of evaluating this size, where it was measured.
        standard_error: of ``value`` under resampling of the examples, where it was computed.
    """

    size: int | None
    split: str
    metric: str
    value: float
    trainable_parameters: int
    seconds: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True)
class Summary:
    """All numbers of one run, and what is needed to trust and repeat them.

    Args:
        method: name of the class, such as ``DyLoRA``.
        benchmark: such as ``glue``.
        task: such as ``sst2``.
        model: Hub name or folder of the pre-trained model.
        seed: of the run.
        seconds: wall time of the run.
        environment: see :func:`environment`.
        data_sha256: hash of the data the run saw.
        results: in the order in which splits and metrics are to be shown; the first split and
            metric are the ones a size is chosen by.
        size_name: what a size is called, in the singular. Ignored when no result has a size.
        notes: what a reader must know beside the numbers, by name (label noise that was added to
            the training set); in the file only where there are any.
    """

    method: str
    benchmark: str
    task: str
    model: str
    seed: int
    seconds: float
    environment: Mapping[str, str | int]
    data_sha256: str
    results: tuple[Result, ...]
    size_name: str = "rank"
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """Each split once, in the order of the results."""
        return list(dict.fromkeys(result.split for result in self.results))

    @property
    def metrics(self) -> list[str]:
        """Each metric once, in the order of the results."""
        return list(dict.fromkeys(result.metric for result in self.results))

    @property
    def sizes(self) -> list[int]:
        """Each size once, ascending; empty for a method without sizes."""
        return sorted({result.size for result in self.results if result.size is not None})

    @property
    def model_name(self) -> str:
        """The model for a title: a Hub name as it is, of a folder only its last part.

        >>> import dataclasses
        >>> summary = Summary("LoRA", "glue", "rte", "org/model", 0, 1.0, {}, "", ())
        >>> summary.model_name
        'org/model'
        >>> dataclasses.replace(summary, model="assets/encoders/mini").model_name
        'mini'
        """
        is_folder = self.model.count("/") > 1 or self.model.startswith((".", "/", "~"))
        return Path(self.model).name if is_folder else self.model

    @property
    def trained_on(self) -> str:
        """Short name of the data, with what was done to the training set: runs to average share it.

        >>> Summary("LoRA", "glue", "rte", "org/model", 0, 1.0, {}, "0123456789ab", ()).trained_on
        '01234567'
        """
        return ", ".join([self.data_sha256[:8], *self.notes.get("train_transforms", [])])

    def noted(self) -> list[tuple[str, str]]:
        """The notes as words and values to show.

        >>> notes = {"train_transforms": ["FlipLabels()"], "observed_flip_rate": 0.25}
        >>> Summary("LoRA", "glue", "rte", "org/model", 0, 1.0, {}, "", (), notes=notes).noted()
        [('train transforms', 'FlipLabels()'), ('observed flip rate', '0.25')]
        """
        texts = {k: v if isinstance(v, list) else [v] for k, v in self.notes.items()}
        return [(k.replace("_", " "), ", ".join(map(_short, v))) for k, v in texts.items()]

    def to_json(self) -> dict[str, Any]:
        """The record of ``summary.json``; JSON has no NaN or infinity, both become null."""
        return {
            "method": self.method,
            "benchmark": self.benchmark,
            "task": self.task,
            "model": self.model,
            "seed": self.seed,
            "seconds": _finite_or_none(self.seconds),
            "environment": dict(self.environment),
            "data_sha256": self.data_sha256,
            "results": [
                {
                    "size": result.size,
                    "split": result.split,
                    "metric": result.metric,
                    "value": _finite_or_none(result.value),
                    "trainable_parameters": result.trainable_parameters,
                }
                for result in self.results
            ],
            **({"notes": dict(self.notes)} if self.notes else {}),
        }

    @classmethod
    def from_json(cls, record: object, source: str = "record") -> Self:
        """The inverse of :meth:`to_json`, with NaN for null.

        Args:
            record: decoded JSON.
            source: what to call the record in an error.

        Raises:
            ValueError: if a key is missing, unknown or of another type.
        """
        optional = {k: v for k, v in OPTIONAL_TYPES.items() if _has(record, k)}
        fields = _checked(record, {**SUMMARY_TYPES, **optional}, source)
        results = []
        for index, entry in enumerate(fields["results"]):
            result = _checked(entry, RESULT_TYPES, f"{source}, results[{index}]")
            results.append(Result(**{**result, "value": _nan_if_none(result["value"])}))
        fields |= {"seconds": _nan_if_none(fields["seconds"]), "results": tuple(results)}
        return cls(**fields)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The summary of a run.

        Args:
            path: a run folder, its report folder, or the JSON file itself.

        Raises:
            FileNotFoundError: if there is no summary at ``path``.
            ValueError: if the file is something else.
        """
        candidates = (path, path / "summary.json", path / "report" / "summary.json")
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None:
            raise FileNotFoundError(
                f"no summary at {path}; give a run folder with report/summary.json in it, "
                "or the JSON file itself"
            )
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # broken JSON and broken UTF-8 alike
            raise ValueError(f"{file} is not a summary of a run: not JSON ({error})") from error
        return cls.from_json(record, source=str(file))


def environment() -> dict[str, str | int]:
    """Versions and hardware that a number may depend on; nothing that names a person or a host."""
    found: dict[str, str | int] = {"lightning_kd": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    found |= {
        "system": sys.platform,
        "machine": platform.machine(),
        "cpus": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    commit = _commit(Path(__file__).parents[2])
    return found | ({"commit": commit} if commit else {})


def _commit(project: Path) -> str | None:
    """Abbreviated commit of a clone, with ``-dirty`` if files differ; None outside a clone."""
    git = shutil.which("git")
    # a package installed into the environment of another project is not of that project's commit
    if git is None or not (project / ".git").exists():
        return None
    command = [git, "--no-optional-locks", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(  # noqa: S603 (fixed arguments, no shell)
        command, cwd=project, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _checked(record: object, types: Mapping[str, tuple[type, ...]], source: str) -> dict[str, Any]:
    """A copy of ``record`` if it has exactly these keys with values of these types."""
    if not isinstance(record, dict):
        raise ValueError(f"{source} is not a summary of a run: expected an object")  # noqa: TRY004 (the content of a file, not an argument)
    problems = [f"no {key!r}" for key in _difference(types, record)]
    problems += [f"unknown {key!r}" for key in _difference(record, types)]
    problems += [
        f"{key!r} is {record[key]!r}"
        for key, allowed in types.items()
        if key in record and not isinstance(record[key], allowed)
    ]
    if problems:
        raise ValueError(f"{source} is not a summary of a run: {', '.join(problems)}")
    return dict(record)


def _has(record: object, key: str) -> bool:
    return isinstance(record, dict) and key in record


def _difference(keys: Iterable[str], others: Iterable[str]) -> list[str]:
    present = set(others)
    return [key for key in keys if key not in present]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value
