"""How many tokens to draft next, from what came of the drafts so far."""

from typing import Any, Literal

from lightning_kd.functional.speculation import best_window

Window = int | Literal["auto", "heuristic"]


class FixedWindow:
    """Always the same number.

    >>> FixedWindow(4).size
    4
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def update(self, accepted: int, drafted: int) -> None:
        """Hear that of ``drafted`` tokens the first ``accepted`` were right."""


class HeuristicWindow(FixedWindow):
    """That of transformers: two more after a round that was right throughout, else one less.

    >>> window = HeuristicWindow(4)
    >>> for accepted, drafted in ((4, 4), (1, 6)):
    ...     window.update(accepted, drafted)
    >>> window.size
    5
    """

    def update(self, accepted: int, drafted: int) -> None:
        """See `FixedWindow.update`."""
        self.size = self.size + 2 if accepted == drafted else max(1, self.size - 1)


class AutoWindow(FixedWindow):
    r"""The window that would pay most at the acceptance seen so far.

    The acceptance is the share of right drafts among those that followed right ones only, with a
    prior of ``prior`` right in as many plus one, so that it starts at that of the first window; the
    past fades by 0.98 a round.

    Args:
        draft_cost: Of a drafted token, see `speculative_speedup`.
        verify_cost: Of the rest of a round.
        prior: Weight of the beginning, in drafts.
        max_window: See `best_window`.

    >>> window = AutoWindow(draft_cost=0.3)
    >>> for _ in range(20):
    ...     window.update(accepted=0, drafted=window.size)
    >>> window.size
    1
    >>> for _ in range(200):
    ...     window.update(accepted=window.size, drafted=window.size)
    >>> window.size
    8
    """

    _FADING = 0.98

    def __init__(
        self, draft_cost: float, verify_cost: float = 1.0, prior: float = 4.0, max_window: int = 8
    ) -> None:
        self._costs = draft_cost, verify_cost, max_window
        self._right, self._asked = prior, prior + 1
        super().__init__(self._best())

    def update(self, accepted: int, drafted: int) -> None:
        """See `FixedWindow.update`."""
        self._right = self._FADING * self._right + accepted
        self._asked = self._FADING * self._asked + accepted + (accepted < drafted)
        self.size = self._best()

    def _best(self) -> int:
        return best_window(self._right / self._asked, *self._costs)


def make_window(window: Window, draft_cost: float, verify_cost: float = 1.0) -> FixedWindow:
    """The rule of a number or a name.

    Raises:
        ValueError: Neither a number of at least 1 nor a known name.

    >>> make_window("heuristic", draft_cost=0.3).size
    4
    """
    if window == "auto":
        return AutoWindow(draft_cost, verify_cost)
    if window == "heuristic":
        return HeuristicWindow(4)
    size: Any = window  # a caller may give anything
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"window must be at least 1, auto or heuristic, got {window!r}")
    return FixedWindow(size)


__all__ = ["AutoWindow", "FixedWindow", "HeuristicWindow", "Window", "make_window"]
