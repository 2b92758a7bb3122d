"""Nested models: one set of weights that works at several sizes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar


class Nested(ABC):
    """A module whose smaller sizes are parts of its larger ones.

    Attributes:
        size_name: What a size is called in reports and log keys (``rank``, ``layer``).
        sizes: All sizes it can take, ascending.
        size: The size in use.
    """

    size_name: ClassVar[str] = "size"

    @property
    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """All sizes it can take, ascending."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The size in use."""

    @abstractmethod
    def resize(self, size: int) -> None:
        """Use ``size`` from now on.

        Raises:
            ValueError: It is none of ``sizes``.
        """

    @property
    def evaluation_sizes(self) -> Sequence[int]:
        """The sizes that validation reports; all of them unless a method says otherwise."""
        return self.sizes

    @property
    def selection_sizes(self) -> Sequence[int]:
        """Of these, those whose mean chooses the best checkpoint: the ones that training is for."""
        return self.evaluation_sizes

    @contextmanager
    def at_size(self, size: int) -> Iterator[None]:
        """Use ``size`` within the block, then whatever was in use before."""
        before = self.size
        self.resize(size)
        try:
            yield
        finally:
            self.resize(before)


__all__ = ["Nested"]
