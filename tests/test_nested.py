"""`at_size` borrows a size and gives it back."""

import pytest

from lightning_kd.nested import Nested


class Rope(Nested):
    def __init__(self) -> None:
        self.length = 4

    @property
    def sizes(self) -> list[int]:
        return [2, 4]

    @property
    def size(self) -> int:
        return self.length

    def resize(self, size: int) -> None:
        if size not in self.sizes:
            raise ValueError(size)
        self.length = size


def test_at_size_restores_what_was_in_use_also_after_an_error() -> None:
    rope = Rope()
    with rope.at_size(2):
        assert rope.size == 2
        with rope.at_size(4):
            assert rope.size == 4
        assert rope.size == 2
    assert rope.size == 4
    with pytest.raises(ZeroDivisionError), rope.at_size(2):
        _ = 1 // 0
    assert rope.size == 4


def test_a_refused_size_changes_nothing() -> None:
    rope = Rope()
    with pytest.raises(ValueError, match="3"), rope.at_size(3):
        pytest.fail("the block is not entered")
    assert rope.size == 4


def test_validation_reports_all_sizes_unless_told_otherwise() -> None:
    assert Rope().evaluation_sizes == [2, 4]
    assert Rope.size_name == "size"
