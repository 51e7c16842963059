"""Batches from threads of this process, and from processes of their own once the step waits for them.

What the step consumes is not known before it runs: a reader that waits shows it. Batches are a pure function of their
number, so that whoever makes them may change between two of them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, Protocol

_LOOKED_AT = 32  # batches between two looks at the reader
_MUCH = 0.2  # of its time, that it waits
_START_SECONDS = 10.0  # that processes may take to start, while the threads go on


class _Batches(Protocol):
    def __next__(self) -> Any: ...

    def close(self) -> None: ...


class Growing:
    """Batches `start`, `start` + 1, ... of `threads`, and from some batch on of `processes`.

    Args:
        threads, processes: (number of the first batch) -> those from there on.
        start: the first.
    """

    def __init__(
        self, threads: Callable[[int], _Batches], processes: Callable[[int], _Batches], start: int
    ) -> None:
        self._batches, self._processes = threads(start), processes
        self._next = start
        self._taken, self._waited, self._since = 0, 0.0, math.nan  # since the last look
        self._later: _Batches | None = None
        self._handover = -1  # their first batch
        self._first: futures.Future[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._first is not None and self._next == self._handover:
            return self._handed_over(self._first)
        begin = time.perf_counter()
        batch = next(self._batches)
        end = time.perf_counter()
        self._next += 1
        if math.isnan(self._since):  # everybody waits for the first
            self._since = end
        elif self._later is None and self._handover < 0:
            self._look(end - begin, end)
        return batch

    def _look(self, waited: float, now: float) -> None:
        """Has processes started where the reader waits much."""
        self._taken, self._waited = self._taken + 1, self._waited + waited
        if self._taken < _LOOKED_AT:
            return
        seconds = now - self._since
        if self._waited > _MUCH * seconds:
            self._handover = self._next + math.ceil(_START_SECONDS * self._taken / seconds)
            self._later = self._processes(self._handover)
            pool = futures.ThreadPoolExecutor(1, "input-processes")
            self._first = pool.submit(next, self._later)
            pool.shutdown(wait=False)
        self._taken, self._waited, self._since = 0, 0.0, now

    def _handed_over(self, first: futures.Future[Any]) -> Any:
        assert self._later is not None
        self._batches.close()
        self._batches, self._later, self._first = self._later, None, None
        self._next += 1
        return first.result()

    def close(self) -> None:
        """Ends whoever makes batches."""
        self._batches.close()
        if self._later is not None and self._first is not None:
            with contextlib.suppress(Exception):  # of a batch that nobody asks for any more
                self._first.result()
            self._later.close()
            self._later = self._first = None
