"""Hashes that tell inputs and networks apart: of an example's tokens, of a teacher."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["content_key", "content_keys", "fingerprint_of"]

# Names, and what a file says of how it was written: nothing that an answer depends on.
_NOT_SETTINGS = {"_name_or_path", "architectures", "transformers_version"}


def content_keys(batch: Mapping[str, Tensor]) -> np.ndarray:
    """A 64-bit hash of each example's tokens ``[b]``, whatever the padding.

    For training sets in which examples share an ``idx``, such as augmented texts.

    >>> tokens = torch.tensor([[5, 6, 0], [5, 6, 7]])
    >>> keys = content_keys({"input_ids": tokens, "attention_mask": (tokens > 0).long()})
    >>> alone = {"input_ids": tokens[:1, :2], "attention_mask": torch.ones(1, 2)}
    >>> bool(keys[0] == content_keys(alone)[0]), bool(keys[0] == keys[1])
    (True, False)
    """
    tokens = batch["input_ids"].cpu().flatten(1).numpy()
    kept = batch["attention_mask"].cpu().flatten(1).numpy().astype(bool)
    keys = [content_key(row[mask]) for row, mask in zip(tokens, kept, strict=True)]
    return np.array(keys, dtype=np.uint64)


def content_key(tokens: np.ndarray) -> int:
    """A 64-bit hash of one example's tokens."""
    digest = hashlib.blake2b(tokens.astype(np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def fingerprint_of(teacher: nn.Module) -> str:
    """SHA-256 of a network: its weights and buffers in the order of their names, and its settings.

    The settings are those of a transformers model: equal weights answer otherwise with another
    number of heads or another activation.
    """
    total = hashlib.sha256(_settings(teacher).encode())
    for name, value in sorted(teacher.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return total.hexdigest()


def _settings(teacher: nn.Module) -> str:
    config: Any = getattr(teacher, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    kept = {name: value for name, value in settings.items() if name not in _NOT_SETTINGS}
    return json.dumps([type(teacher).__name__, kept], sort_keys=True, default=str)
