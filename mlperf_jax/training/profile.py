"""An optional trace of a few steps, for TensorBoard's or xprof's profiler."""

from __future__ import annotations

from pathlib import Path

import jax


class Profile:
    """Traces the dispatches between two steps into a folder.

    Args:
        folder: where the trace goes; None traces nothing.
        first, last: steps; the first ones are left out, for they still fill the pipeline.
    """

    def __init__(self, folder: Path | None, *, first: int = 10, last: int = 20) -> None:
        self.folder, self.first, self.last = folder, first, last
        self._running = False

    def at(self, step: int) -> None:
        """To be called before each dispatch with the number of steps done."""
        if self.folder is None:
            return
        if not self._running and self.first <= step < self.last:
            jax.profiler.start_trace(self.folder)
            self._running = True
        elif self._running and step >= self.last:
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running; at most one is taken."""
        if self._running:
            jax.profiler.stop_trace()
        self._running = False
        self.folder = None
