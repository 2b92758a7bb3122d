"""The matrix leaves out the kinds of tasks that a method does not claim."""

from collections.abc import Sequence

import pytest

from tests import tiny


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop tests whose ``name`` (a method's) and ``kind`` (a task's) do not go together."""
    left_out: Sequence[pytest.Item] = [item for item in items if not _claimed(item)]
    if left_out:
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)


def _claimed(item: pytest.Item) -> bool:
    given = getattr(getattr(item, "callspec", None), "params", {})
    return "kind" not in given or "name" not in given or tiny.claims(given["name"], given["kind"])
