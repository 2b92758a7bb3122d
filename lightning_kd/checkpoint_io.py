"""Checkpoints that are there whole or not at all.

Lightning writes through a temporary file in the *system's* temporary folder and moves it; across
file systems a move is a copy, and a process killed meanwhile leaves half a checkpoint under the
final name. Here the temporary file lies beside its target and replaces it in one step.
"""

import contextlib
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

__all__ = ["AtomicCheckpointIO", "remove_left_over", "write_atomically"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, renames; reads tensors and plain values only.

    Use it as ``Trainer(plugins=[AtomicCheckpointIO()])``. Addresses with a protocol (``s3://``) are
    left to Lightning. Reading with ``weights_only=None`` means True here, whatever torch's or
    Lightning's default is; ``Trainer.fit(..., weights_only=False)`` still trusts a file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; after any failure the file that was there before still is.

        Raises:
            OSError: The disk is full, read-only or gone.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_atomically(lambda file: torch.save(checkpoint, file), path)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is cut off, no checkpoint, or holds more than tensors and plain values.
        """
        strict = True if weights_only is None else weights_only
        try:
            return super().load_checkpoint(path, map_location, strict)
        except (RuntimeError, EOFError, KeyError, UnpicklingError, struct.error) as error:
            raise ValueError(_why_unreadable(path, error)) from error


def write_atomically(write: Callable[[IO[bytes]], object], path: str | Path) -> None:
    """Let ``write`` fill a file that appears under its name only when it is complete and on disk.

    Args:
        write: Gets the open binary file.
        path: Final name; folders are made as needed.

    Raises:
        OSError: Writing failed; nothing has changed under the name. Other errors of ``write`` pass.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(path)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is None:
            raise
        raise OSError(
            cause.errno,
            f"cannot write {path}: {cause.strerror or cause}; nothing was changed under that name; "
            "free space or choose another folder",
        ) from error
    _sync_folder(path.parent)


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError at the root: torch's writer, closing a file it could not fill, hides it."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_left_over(path: Path) -> None:
    """Delete temporary files for this target whose process is gone: it was killed while writing."""
    prefix = f"{path.name}.tmp-"
    for other in path.parent.iterdir():
        pid = other.name.removeprefix(prefix)
        if other.name.startswith(prefix) and pid.isdecimal() and not _is_alive(int(pid)):
            other.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives and is somebody else's
        return True
    return True


def _why_unreadable(path: str | Path, error: Exception) -> str:
    local = Path(path)
    if local.is_file() and not zipfile.is_zipfile(local):
        size = local.stat().st_size
        return (
            f"{path} ({size:,} bytes) is cut off or not a checkpoint; resume from another one, "
            f"for instance in {local.parent}"
        )
    if isinstance(error, UnpicklingError):
        return (
            f"{path} holds more than tensors and plain values, which could run code when read; "
            f"pass weights_only=False only if you trust its origin ({_first_line(error)})"
        )
    return (
        f"{path} is damaged or cannot be read here ({_first_line(error)}); use another checkpoint"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
