"""Waiting without spinning: a poll that backs off from microseconds to two milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable

YIELDS = 20
SHORTEST_SECONDS = 20e-6
LONGEST_SECONDS = 2e-3
GROWTH = 1.3


def wait_until(ready: Callable[[], bool], timeout_seconds: float) -> bool:
    """Poll `ready` until it is true or the time is over; returns whether it became true.

    A blocking MPI receive spins at 100% of a core, and ranks that outnumber the cores then starve those that train.
    """
    for _ in range(YIELDS):
        if ready():
            return True
        time.sleep(0)
    ends = time.monotonic() + timeout_seconds
    pause = SHORTEST_SECONDS
    while not ready():
        if time.monotonic() >= ends:
            return False
        time.sleep(pause)
        pause = min(pause * GROWTH, LONGEST_SECONDS)
    return True
