"""The method behind a checkpoint."""

from pathlib import Path
from typing import Any


def load_method(checkpoint: Path) -> Any:
    """The module that wrote ``checkpoint``, on the CPU.

    Raises:
        FileNotFoundError: There is none.
        ValueError: No method of ours wrote it.
    """
    from lightning_kd import methods
    from lightning_kd.checkpoint_io import AtomicCheckpointIO

    if not checkpoint.is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}; give the path of a .ckpt")
    written: dict[str, Any] = AtomicCheckpointIO().load_checkpoint(checkpoint)
    name = written.get("lightning_kd", {}).get("method")
    if name not in methods.METHODS:
        raise ValueError(f"{checkpoint} was not written by a method of lightning-kd")
    return getattr(methods, name).load_from_checkpoint(checkpoint, map_location="cpu")


__all__ = ["load_method"]
