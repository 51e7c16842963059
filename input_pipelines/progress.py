"""How far a step of preparation is, for whoever waits for it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

_FIRST_SECONDS, _NEXT_SECONDS = 3.0, 10.0


@contextlib.contextmanager
def step(what: str, total: int = 0, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Says on stderr what is being done, once it has taken three seconds, and then every ten.

    Args:
        what: "drawing composites".
        total: of how many; 0 where nobody counts.
        unit: of them, "images".

    Yields:
        What to call with the number of those done since it was called last; from one thread.
    """
    started, end, done = time.monotonic(), threading.Event(), 0

    def advance(count: int = 1) -> None:
        nonlocal done
        done += count

    def line() -> str:
        seconds = time.monotonic() - started
        parts = [what]
        if total or done:
            of = f" of {total:,}" if total else ""
            parts.append(f"{done:,}{of} {unit}".rstrip())
        parts.append(f"{seconds:.0f} s so far")
        if done and total:
            parts.append(f"about {seconds * max(total - done, 0) / done:.0f} s left")
        return " | ".join(parts)

    def tell() -> None:
        pause = _FIRST_SECONDS
        while not end.wait(pause):
            pause = _NEXT_SECONDS
            # Whoever reads may have gone; that is no matter of the step.
            with contextlib.suppress(OSError):
                print(f"mlperf_jax: {line()}", file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield advance
    finally:
        end.set()
        teller.join()
