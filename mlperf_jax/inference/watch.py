"""What people see while LoadGen runs, and an optional trace of a part of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Self, TextIO

import jax

from loadgen_py.responses import Responses

_LINE_SECONDS = 10.0
_REWRITE_SECONDS = 1.0
_PROFILE_SECONDS = 1.0  # and as long, or a quarter of the run, before it begins


class Watch:
    """A system under test, watched by a thread that wakes up rarely enough to disturb nothing.

    Args:
        sut: to be handed through.
        what: what runs, "Server performance".
        least_s: how long it will take at least; 0 if nobody knows.
        samples: how many will be answered; 0 if nobody knows.
        stream: where the line goes.
        profile_dir: where a trace of a second goes; None traces nothing. Figures suffer from it.
    """

    def __init__(
        self,
        sut: Any,
        what: str,
        *,
        least_s: float,
        stream: TextIO,
        samples: int = 0,
        profile_dir: Path | None = None,
    ) -> None:
        self.name = sut.name
        self.issue, self.flush = sut.issue, sut.flush
        self._sut, self._what, self._least_s, self._samples = sut, what, least_s, samples
        self._stream = stream
        self._in_place = stream.isatty()
        self._responses: Responses | None = None
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._show, daemon=True)]
        if profile_dir:
            self._threads.append(threading.Thread(target=self._trace, args=(profile_dir,), daemon=True))

    def start(self, responses: Responses) -> None:
        self._responses = responses
        self._sut.start(responses)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _show(self) -> None:
        shown = False
        while not self._end.wait(_REWRITE_SECONDS if self._in_place else _LINE_SECONDS):
            line = self._line(time.monotonic() - self._began)
            end = "" if self._in_place else "\n"
            print(f"\r{line}\x1b[K" if self._in_place else line, end=end, file=self._stream, flush=True)
            shown = True
        if shown and self._in_place:
            print("\r\x1b[K", end="", file=self._stream, flush=True)

    def _line(self, taken: float) -> str:
        parts = [f"{self._what}: {taken:.0f} s so far"]
        done = self._responses.completed if self._responses else 0
        of = f" of {self._samples:,}" if self._samples else ""
        parts.append(f"{done:,}{of} samples answered")
        if done and self._samples:
            parts.append(f"about {taken * max(self._samples - done, 0) / done:.0f} s left")
        elif taken < self._least_s:
            parts.append(f"at least {self._least_s - taken:.0f} s left")
        return " | ".join(parts)

    def _trace(self, folder: Path) -> None:
        if self._end.wait(min(_PROFILE_SECONDS, self._least_s / 4)):
            return
        jax.profiler.start_trace(folder)
        self._end.wait(_PROFILE_SECONDS)
        jax.profiler.stop_trace()
