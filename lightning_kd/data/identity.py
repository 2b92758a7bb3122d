"""What a text data module says of its training examples; see `lightning_kd.teacher_cache`."""

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np

from lightning_kd.data.encoding import Encoded

__all__ = ["TrainingText"]


class TrainingText(ABC):
    """`lightning_kd.teacher_cache.TrainingRows` for data modules whose examples are tokens."""

    max_length: int

    @property
    @abstractmethod
    def _tokenizer_digest(self) -> str: ...

    @abstractmethod
    def _splits(self, role: str) -> dict[str, Encoded]: ...

    @cached_property
    def train_identity(self) -> dict[str, str]:
        """Hashes of the tokens (labels are not among the model's inputs) and the tokenizer."""
        return {
            "text": self._splits("train")["train"].inputs_digest(),
            "tokenizer": self._tokenizer_digest,
            "max_length": str(self.max_length),
        }

    @cached_property
    def train_keys(self) -> int | np.ndarray:
        """One more than the largest ``idx``, or sorted content keys where examples share one."""
        return self._splits("train")["train"].row_keys()

    @property
    def train_width(self) -> int:
        """The most tokens of an example."""
        return self.max_length

    @property
    def augments(self) -> bool:
        """Texts are the same every time."""
        return False
