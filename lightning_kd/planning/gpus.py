"""What a GPU has: memory, compute capability, and which half precision it computes in."""

import re
from dataclasses import dataclass

GIB = 2**30
GB = 10**9


@dataclass(frozen=True)
class GPU:
    """A kind of GPU.

    Attributes:
        name: As users type it.
        memory: Bytes that its driver shows, which is a little less than the label in GiB says.
        capability: CUDA compute capability; ``(0, 0)``: unknown.
    """

    name: str
    memory: int
    capability: tuple[int, int] = (0, 0)

    @property
    def has_bf16(self) -> bool:
        """Whether it computes in bfloat16, which begins with Ampere (SM80).

        Of a card that is only known by its memory nothing is refused.
        """
        return self.capability == (0, 0) or self.capability >= (8, 0)


def _gpu(name: str, mebibytes: int, major: int, minor: int) -> GPU:
    return GPU(name, mebibytes * 2**20, (major, minor))


# MiB in total as nvidia-smi shows them, rounded down; error correction takes its part of some.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("V100-16GB", 16_160, 7, 0),
        _gpu("V100-32GB", 32_510, 7, 0),
        _gpu("T4-16GB", 15_360, 7, 5),
        _gpu("A10-24GB", 23_028, 8, 6),
        _gpu("A100-40GB", 40_536, 8, 0),
        _gpu("A100-80GB", 81_251, 8, 0),
        _gpu("L4-24GB", 23_034, 8, 9),
        _gpu("L40S-48GB", 46_068, 8, 9),
        _gpu("RTX3090-24GB", 24_268, 8, 6),
        _gpu("RTX4090-24GB", 24_564, 8, 9),
        _gpu("H100-80GB", 81_559, 9, 0),
    )
}


def gpu_named(name: str) -> GPU:
    """The GPU of a name, in any case.

    Raises:
        ValueError: It is not in the table; the message lists what is.

    >>> gpu_named("v100-32gb").has_bf16
    False
    """
    by_name = {known.lower(): gpu for known, gpu in GPUS.items()}
    if name.lower() not in by_name:
        raise ValueError(
            f"there is no GPU {name!r} in the table; choose from {', '.join(GPUS)}, or give its "
            "memory: --memory 32GB"
        )
    return by_name[name.lower()]


def parse_memory(text: str) -> int:
    """Bytes of a size: ``GB`` and ``MB`` are decimal (10^9, 10^6), ``GiB`` and ``MiB`` binary.

    Cards are sold in GiB under the name GB: a "32 GB" V100 has 31.7 GiB = 34.1 GB.

    Raises:
        ValueError: No number, no unit, or not more than nothing.

    >>> parse_memory("32GB"), parse_memory("32 GiB"), parse_memory("512MB")
    (32000000000, 34359738368, 512000000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", text, re.IGNORECASE)
    size = 0
    if found:
        unit = found.group(2).upper()
        base = 1024 if "I" in unit else 1000
        size = int(float(found.group(1)) * base ** ("KMGT".index(unit[0]) + 1))
    if size <= 0:
        raise ValueError(
            f"a memory size is a number and a unit such as 32GB or 24GiB, got {text!r}"
        )
    return size


__all__ = ["GB", "GIB", "GPU", "GPUS", "gpu_named", "parse_memory"]
