"""Whether the wall clock can be believed: it is held against a clock that nobody sets."""

from __future__ import annotations

import time

TOLERANCE_S = 1.0
"""How far the two may part before it is told."""


class WallClock:
    """The wall clock beside the steady one, from when this was made."""

    def __init__(self) -> None:
        self._apart = time.time() - time.monotonic()

    def moved(self) -> float:
        """By how many seconds the wall clock was set since the last time that this told it; 0.0 if it was not.

        A machine that slept counts too: its steady clock stood still.
        """
        apart = time.time() - time.monotonic()
        moved = apart - self._apart
        if abs(moved) <= TOLERANCE_S:
            return 0.0
        self._apart = apart
        return moved
