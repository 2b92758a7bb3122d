"""How a command tells a user what went wrong: one sentence, no trace."""

import os
import sys
from typing import NoReturn

TRACEBACK = "LIGHTNING_KD_TRACEBACK"
USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, RuntimeError, ImportError)
"""What the library raises for input it cannot use, or an extra it lacks.

Other errors are defects and keep a trace.
"""


def explain(error: BaseException) -> NoReturn:
    """Write the message to standard error and leave with status 1.

    Raises:
        BaseException: The error itself, where ``LIGHTNING_KD_TRACEBACK`` is set.
        SystemExit: Else.
    """
    if os.environ.get(TRACEBACK):
        raise error
    print(f"error: {error}\n({TRACEBACK}=1 shows where)", file=sys.stderr)  # noqa: T201
    raise SystemExit(1)


__all__ = ["TRACEBACK", "USER_ERRORS", "explain"]
