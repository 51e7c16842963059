"""The official module's names: a script written for `mlperf_loadgen` runs with `loadgen_py`."""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadgen_py.responses import ResponseRecorder, as_bytes
from loadgen_py.result import Result
from loadgen_py.run import LoadTest
from loadgen_py.settings import LogSettings, TestSettings
from loadgen_py.sut import CallbackLibrary, CallbackSut, FastCallbackSut, QuerySample

ResponseCallback = Callable[["QuerySampleResponse"], Any]

_now = time.perf_counter_ns
_responses: ResponseRecorder | None = None  # of the test that runs


class SutError(RuntimeError):
    """The system under test answered wrongly, raised, or hung; the logs are written."""


class QuerySampleResponse:
    """The answer to one sample.

    Attributes:
        id: the `QuerySample.id` that is answered.
        data: the address of the answer and `size` its bytes; or bytes, or anything with a
            buffer, such as a NumPy array, whose `size` is not needed then.
        n_tokens: tokens of the answer, where tokens are measured.

    An address is read when the response is made, if the answer is to be logged: its memory
    is there then, while many scripts let go of it before `QuerySamplesComplete`.
    """

    __slots__ = ("id", "data", "size", "n_tokens", "_copy")

    def __init__(self, id: int = 0, data: Any = 0, size: int = 0, n_tokens: int = 0) -> None:
        self.id = id
        self.data = data
        self.size = size
        self.n_tokens = n_tokens
        if size and _responses is not None and _responses.log is not None:
            self._copy = _copied(self, _responses)

    def __getstate__(self) -> tuple[int, Any, int, int]:
        return self.id, self.data, self.size, self.n_tokens

    def __setstate__(self, state: tuple[int, Any, int, int]) -> None:
        self.id, self.data, self.size, self.n_tokens = state

    def __repr__(self) -> str:
        return f"QuerySampleResponse(id={self.id}, size={self.size}, n_tokens={self.n_tokens})"


def _address(response: QuerySampleResponse) -> int | None:
    """Where the answer lies, if the response says that instead of holding it."""
    data = response.data
    if isinstance(data, int) or response.size and isinstance(data, np.integer):
        return int(data)
    return None


def _copied(response: QuerySampleResponse, active: ResponseRecorder) -> bytes | None:
    """The bytes behind an address if the sample's answer is logged, else None."""
    address = _address(response)
    if address is None or not active.wants_answer(response.id):
        return None
    return _read_memory(address, response.size)


@functools.cache
def _own_memory() -> int | None:
    try:
        return os.open("/proc/self/mem", os.O_RDONLY)
    except OSError:
        return None


def _read_memory(address: int, size: int) -> bytes | None:
    """A copy of this process's memory, or None where there is none any more.

    Read through the operating system, which refuses an address that is not mapped where a
    pointer would end the process.
    """
    file = _own_memory()
    if file is None:
        return ctypes.string_at(address, size)
    parts, left = [], size
    while left:
        try:
            part = os.pread(file, left, address + size - left)
        except (OSError, OverflowError):
            return None
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _answer(response: QuerySampleResponse, active: ResponseRecorder, called_back: bool) -> bytes:
    """The bytes to log for a response.

    Raises:
        ValueError: its memory is gone, or its size is negative.
        TypeError: it holds no bytes.
    """
    address, size = _address(response), response.size
    if size < 0:
        raise ValueError(f"its size is {size}")
    if address is None:
        whole = as_bytes(response.data)
        return whole[:size] if size else whole
    if not size:
        return b""
    copy = None if called_back else getattr(response, "_copy", None)
    data = _read_memory(address, size)
    if copy is not None and data != copy:
        active.record_warning(
            "The memory of a response was freed or changed between QuerySampleResponse and "
            "QuerySamplesComplete; the first content is logged. Keep the memory, or pass bytes or an array."
        )
        data = copy
    if data is None:
        raise ValueError("its memory is gone; keep it, or pass bytes")
    return data


def QuerySamplesComplete(
    responses: Sequence[QuerySampleResponse], response_cb: ResponseCallback | None = None
) -> None:
    """Tells LoadGen that samples are done; from any thread.

    `response_cb(response)` is called, untimed, for each response that is logged, and may
    bring its data to `response.data` first.
    """
    now = _now()
    active = _responses
    if active is None:
        return
    if active.log is None:
        if len(responses) == 1:
            (response,) = responses
            active.complete_one(now, response.id, response.n_tokens)
        else:
            n_tokens = [r.n_tokens for r in responses] if active.n_tokens else None
            active.complete_at(now, [r.id for r in responses], None, n_tokens)
        return

    def read(response: QuerySampleResponse) -> bytes:
        if response_cb is not None:
            response_cb(response)
        return _answer(response, active, response_cb is not None)

    active.complete_at(now, [r.id for r in responses], responses, [r.n_tokens for r in responses], read)


def FirstTokenComplete(
    responses: Sequence[QuerySampleResponse], response_cb: ResponseCallback | None = None
) -> None:
    """Tells LoadGen that the first tokens of samples are there; from any thread.

    As officially, `response_cb` is taken but not called.
    """
    active = _responses
    if active is None:
        return
    active.first_token(
        [r.id for r in responses], responses, lambda response: _answer(response, active, False)
    )


def ConstructSUT(
    issue_query: Callable[[list[QuerySample]], Any], flush_queries: Callable[[], Any]
) -> CallbackSut:
    """A system under test whose `issue_query` takes a list of `QuerySample`."""
    return CallbackSut(issue_query, flush_queries)


def ConstructFastSUT(
    issue_query: Callable[[list[int], list[int]], Any], flush_queries: Callable[[], Any]
) -> FastCallbackSut:
    """A system under test whose `issue_query` takes a list of ids and one of indices."""
    return FastCallbackSut(issue_query, flush_queries, lambda: "PyFastSUT")


def ConstructQDL(
    issue_query: Callable[[list[QuerySample]], Any], flush_queries: Callable[[], Any], name: Callable[[], str]
) -> CallbackSut:
    """A system under test that is reached over a network; a test asks `name()` what it is called there."""
    return CallbackSut(issue_query, flush_queries, name)


def ConstructQSL(
    total_sample_count: int,
    performance_sample_count: int,
    load_samples_to_ram: Callable[[list[int]], Any],
    unload_samples_from_ram: Callable[[list[int]], Any],
) -> CallbackLibrary:
    """A sample library of callbacks that take lists of indices."""
    return CallbackLibrary(
        total_sample_count, performance_sample_count, load_samples_to_ram, unload_samples_from_ram
    )


def DestroySUT(sut: CallbackSut) -> None:
    """Nothing to do: Python frees it."""


DestroyFastSUT = DestroyQDL = DestroySUT


def DestroyQSL(qsl: CallbackLibrary) -> None:
    """Nothing to do: Python frees it."""


def StartTest(
    sut: CallbackSut,
    qsl: CallbackLibrary,
    test_settings: TestSettings,
    audit_config_filename: str = "audit.config",
) -> Result:
    """Runs a test with logs in the working directory; see `StartTestWithLogSettings`."""
    return StartTestWithLogSettings(sut, qsl, test_settings, LogSettings(), audit_config_filename)


def StartTestWithLogSettings(
    sut: CallbackSut,
    qsl: CallbackLibrary,
    test_settings: TestSettings,
    log_settings: LogSettings,
    audit_config_filename: str = "audit.config",
) -> Result:
    """Runs a test and writes the logs; the official function returns nothing, this one the result.

    Raises:
        SutError: after the logs are written, if the system under test did something wrong.
        KeyboardInterrupt: likewise, if the user stopped the run.
        UserError: for settings that cannot be run.
        TypeError: for arguments of another type.
    """
    global _responses
    for settings, kind in ((test_settings, TestSettings), (log_settings, LogSettings)):
        if not isinstance(settings, kind):
            raise TypeError(f"{settings!r} is no {kind.__name__}.")
    if _responses is not None:
        raise SutError("A test is running already; start the next one when it has ended.")
    test = LoadTest(sut, qsl, test_settings, log_settings, Path(audit_config_filename))
    _responses = test.responses
    try:
        result = test.execute()
    finally:
        _responses = None
    if result.interrupted:
        raise KeyboardInterrupt
    if result.errors:
        raise SutError("; ".join(result.errors))
    return result
