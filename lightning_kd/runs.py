"""Run folders: where a run writes, and how a command line goes back to one."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import strftime

from lightning.pytorch.utilities import rank_zero_only

STAGES = ("fit", "validate", "test", "predict")
RUN_DIR = "LIGHTNING_KD_RUN_DIR"
"""Set for the processes that a run starts, so that all of them write to one folder."""


def with_settings(stage: str, args: list[str], recipe: str) -> tuple[list[str], Path]:
    """The command line with the settings of the run it goes back to, and the folder to write to.

    An overlay ``offline.yaml`` may have a version for a benchmark, ``offline/<benchmark>.yaml``,
    which is read in its place, and a supplement for a recipe, ``offline/<recipe>.yaml``, which is
    read right after it. A recipe's name ends in that of its benchmark.
    """
    args = _with_supplements(args, recipe)
    resume, args = _pop_option(args, "--resume")
    if resume is not None:
        folder = _resumable(resume, stage, recipe)
        return ["--config", str(folder / "config.yaml"), *args], folder
    checkpoint, rest = _pop_option(args, "--ckpt_path")
    if checkpoint is not None:  # last, for a run's config.yaml has one as well: none
        args = [*rest, "--ckpt_path", checkpoint]
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}; give the path of a .ckpt")
    if checkpoint is not None and stage != "fit":
        config = Path(checkpoint).parent.parent / "config.yaml"
        if config.is_file():
            args = ["--config", str(config), *args]
    return args, _new_run_dir(recipe)


def _resumable(resume: str, stage: str, recipe: str) -> Path:
    """The folder of a run that can go on, held by this process."""
    folder = Path(resume)
    config, last = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
    missing = [] if config.is_file() else [config]
    # Of a training in phases, each has its own; the trainings find theirs in the folder.
    if not missing and next(folder.rglob("last.ckpt"), None) is None:
        missing.append(last)
    if missing:
        raise FileNotFoundError(f"{resume} cannot be resumed: there is no {missing[0]}")
    if stage != "fit" or folder.resolve().parent.name != recipe:
        raise ValueError(f"{resume} is no run of {recipe}; resume it with its own recipe")
    hold(folder)
    return folder


def _with_supplements(args: Sequence[str], recipe: str) -> list[str]:
    out: list[str] = []
    for word, before in zip(args, ["", *args], strict=False):
        given = word.removeprefix("--config=")
        if before != "--config" and given == word:
            out.append(word)
            continue
        folder = Path(given).with_suffix("")
        version = folder / f"{recipe.rpartition('_')[2]}.yaml"
        supplement = folder / f"{recipe}.yaml"
        option = word.removesuffix(given)  # --config= or nothing
        out.append(option + str(version) if version.is_file() else word)
        if supplement.is_file():
            out.append(f"--config={supplement}")
    return out


def _pop_option(args: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    value, rest = None, list[str]()
    words = iter(args)
    for word in words:
        if word == name:
            value = next(words, "")
        elif word.startswith(name + "="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return value, rest


def _new_run_dir(recipe: str) -> Path:
    if shared := os.environ.get(RUN_DIR):
        return Path(shared)
    # Named after a launcher's job rather than a second; what counts is the first process's folder,
    # which Lightning hands to the others. Another run of the same job gets its own.
    job = os.environ.get("TORCHELASTIC_RUN_ID") or os.environ.get("SLURM_JOB_ID")
    name = f"job_{job}" if job and job != "none" else strftime("%Y-%m-%d_%H-%M-%S")
    folder, count = Path("runs") / recipe / name, 1
    while folder.exists():
        count += 1
        folder = folder.with_name(f"{name}_{count}")
    return folder


_held: dict[Path, int] = {}


def hold(folder: Path) -> None:
    """Keep other commands out of a run folder until `shared` ends or the process dies.

    The lock is on the folder itself, and the system's: no file is left by a process that is killed.

    Raises:
        ValueError: Another command works in the folder.
    """
    folder = folder.resolve()
    first = getattr(rank_zero_only, "rank", 0) == 0  # holds it for the other processes of the run
    if folder in _held or not first:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"another process is working in {folder}; let it end, or end it, before resuming"
        ) from error
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    _held[folder] = descriptor


@contextmanager
def shared(run_dir: Path) -> Iterator[None]:
    """Within the block, processes that are started write to ``run_dir`` too."""
    before = os.environ.get(RUN_DIR)
    os.environ[RUN_DIR] = str(run_dir)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(RUN_DIR, None)
        if (descriptor := _held.pop(run_dir.resolve(), None)) is not None:
            os.close(descriptor)


__all__ = ["RUN_DIR", "STAGES", "hold", "shared", "with_settings"]
