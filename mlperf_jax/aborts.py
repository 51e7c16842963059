"""A last sentence for a process that a library aborts.

XLA, LLVM and gRPC end the process where a thread cannot be started, memory cannot be had or a partner is
lost, and nothing of it reaches Python as an exception. Python's own signal handlers run between bytecodes,
too late for `abort`, so this one is C's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

_kept: list[object] = []  # What C holds a pointer to must not be collected.


def explain(sentence: Callable[[], str]) -> None:
    """From now on a process that is aborted says what this returns, and ends with status 2."""

    def speak(_: int) -> None:
        os.write(2, f"mlperf_jax: {sentence()}\n".encode())
        os._exit(2)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(speak)
    _kept.append(handler)
    _signal(ctypes.cast(handler, ctypes.c_void_p))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Within it an aborted process says that something ran out, unless there is more to say by then."""
    before, known = _signal(None), len(_kept)
    explain(_shortage)
    try:
        yield
    finally:
        if len(_kept) == known + 1:
            _signal(before)
            _kept.pop()


def _shortage() -> str:
    return (
        "a library ended this process, as they do where memory or threads run out, and wrote above why; free "
        "memory or raise its limits (ulimit -v, ulimit -u), and run the same command again."
    )


def _signal(handler: Any) -> Any:
    c_signal = ctypes.CDLL(None).signal
    c_signal.restype, c_signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return c_signal(signal.SIGABRT, handler)
