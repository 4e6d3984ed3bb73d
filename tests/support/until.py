"""Waiting for what is to come about."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["PATIENCE", "until"]

PATIENCE = 60.0  # seconds, for what comes within a few of them on a machine that nobody else uses


def until(
    true: Callable[[], object], seconds: float = PATIENCE, say: object = "it does not come about"
) -> float:
    """Returns when `true()` is, the seconds that it took; after `seconds` it is a failure, and `say` is why: str(say), or
    what it returns.

    How fast something must be is asserted with what is returned; `seconds` is patience, and costs only who fails.
    """
    start = time.monotonic()
    while True:
        begun = time.monotonic()  # a look that begins in time counts, however long it takes
        if true():
            return time.monotonic() - start
        assert begun - start <= seconds, str(say() if callable(say) else say)
        time.sleep(0.02)
