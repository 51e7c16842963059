"""SIGTERM and Ctrl-C: heard at once, obeyed between two steps."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any, Self

import jax


class StopSignal:
    """Hears SIGTERM and SIGINT while it is entered; a second SIGINT ends the process as usual.

    With several processes, all of them must stop after the same step. There jax's own preemption
    protocol hears SIGTERM, in whichever process it arrives, and agrees on the step.

    Attributes:
        status: the exit status to end with, 128 + the signal's number.
    """

    status = 128 + signal.SIGTERM

    def __init__(self) -> None:
        self._heard = False
        self._asked = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        heeded = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
        self._before = {which: signal.signal(which, self._hear) for which in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._heard = True
        self.status = 128 + number
        print(
            "\nStopping after this step, and saving; once more Ctrl-C to end at once.",
            file=sys.stderr,
            flush=True,
        )

    def requested(self) -> bool:
        """Whether to stop now; every process gets the same answer if all ask at the same places."""
        if jax.process_count() == 1:
            return self._heard
        from jax.experimental import multihost_utils

        # The processes agree on one number at which to stop. Steps would not do: where a dispatch
        # holds several, or a block ends, nobody asks at the number agreed on.
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)
