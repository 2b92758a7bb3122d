"""Where a network's weights are found in files, whatever the format: by their bytes."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FIRST = 16
"""Values of a tensor that are looked for: 32 bytes and more, which no other file has by chance."""


def traces(folder: Path, weights: Mapping[str, Tensor], leave_out: Iterable[str] = ()) -> list[str]:
    """``file: tensor`` for every weight with a copy in a file, in any precision.

    Checkpoints, safetensors and arrays keep values as they are in memory, one after the other.

    Args:
        folder: Searched with all folders in it.
        weights: By name; those with one value throughout tell nothing and are left out.
        leave_out: Folders, relative to ``folder``, that may have them.
    """
    wanted = {name: list(_patterns(value)) for name, value in weights.items() if _telling(value)}
    assert wanted, "there is no weight that could be recognized"
    out = [folder / name for name in leave_out]
    files = [f for f in folder.rglob("*") if f.is_file() and not any(o in f.parents for o in out)]
    assert files, f"there is no file in {folder}"
    found = []
    for file in sorted(files):
        content = file.read_bytes()
        found += [
            f"{file.relative_to(folder)}: {name}"
            for name, patterns in wanted.items()
            if any(pattern in content for pattern in patterns)
        ]
    return found


def _telling(value: Tensor) -> bool:
    first = value.detach().float().flatten()[:FIRST]
    return value.is_floating_point() and len(first) >= 8 and bool(first.std() > 0)


def _patterns(value: Tensor) -> Iterator[bytes]:
    first = value.detach().cpu().flatten()[:FIRST]
    for dtype in DTYPES:
        yield first.to(dtype).view(torch.uint8).numpy().tobytes()
