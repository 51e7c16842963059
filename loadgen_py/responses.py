"""Where answers arrive: when each sample was completed, by any thread, exactly once."""

from __future__ import annotations

import sys
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

MISSING_TOKENS = -(1 << 63)
_MESSAGES_KEPT = 10
_FEW = 64  # up to here plain loops and array slices beat NumPy
_ZEROS = [array("q", bytes(8 * n)) for n in range(_FEW + 1)]

_now = time.perf_counter_ns

T = TypeVar("T")


class Rows(Protocol):
    """Something for each sample: a sequence, an array, or what makes its items when they are asked for."""

    def __getitem__(self, k: int, /) -> Any: ...


class Responses(Protocol):
    """Takes the answers of a system under test; all methods may be called from any thread.

    Attributes:
        completed: samples answered so far.
    """

    completed: int

    def complete(
        self,
        ids: Sequence[int] | np.ndarray,
        answers: Rows | None = None,
        n_tokens: Rows | None = None,
    ) -> None:
        """Records that the samples `ids` are done now.

        Args:
            ids: `[N]` ids from `issue`, in any order and from any queries. A `range` is fastest.
            answers: `[N]` what to log for each sample: bytes, or anything with a buffer, such
                as a NumPy array or one row of it. Copied at once, and only where it is logged;
                one that holds no bytes, such as None, is an error.
            n_tokens: `[N]` tokens of each answer, where tokens are measured.
        """

    def first_token(self, ids: Sequence[int] | np.ndarray, tokens: Rows | None = None) -> None:
        """Records that the first token of each of the samples `ids` is there now.

        Args:
            ids: `[N]` ids from `issue`.
            tokens: `[N]` the tokens to log, as `answers` in `complete`.
        """


class AnswerLog(Protocol):
    """Takes the answers that are to be logged."""

    def wants(self, position: int) -> bool: ...

    def answer(self, position: int, data: bytes, n_tokens: int) -> None: ...

    def first_token(self, position: int, data: bytes) -> None: ...


class ResponseRecorder:
    """The `Responses` of loadgen_py's own runs: when each sample was answered, exactly once.

    One object serves a whole run; `begin` starts each phase. Times are `time.perf_counter_ns`.

    Attributes:
        first_id: the id of the phase's first sample.
        issued: samples handed to the system under test in this phase; the issuer sets it
            before each query, so that an answer to a sample not yet asked for is caught.
        completed: samples answered in this phase.
        done: completion time of each sample of the phase, 0 while it is outstanding.
        first_token_at: the same for first tokens, where they are measured.
        n_tokens: tokens of each answer, `MISSING_TOKENS` while unknown, where they are measured.
        errors: what the system under test did wrong: the first few messages.
        error_count: how often.
        log: takes the answers that are logged, None in a phase that logs none.
        warnings: what LoadGen noticed but does not hold against it.
    """

    __slots__ = (
        "first_id", "issued", "completed", "done", "first_token_at", "n_tokens", "errors", "error_count", "warnings",
        "log", "_lock", "_wake", "_waiting", "_needs_first_token", "_closed", "_times_only",
    )  # fmt: skip

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Lock()  # held, and released once by the answer that is waited for
        self._wake.acquire()
        self._waiting = False
        self._closed = True
        self._times_only = False  # open, and of an answer nothing is recorded but its time
        self.first_id = 0
        self.log: AnswerLog | None = None
        self.issued = self.completed = self.error_count = 0
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.done = self.first_token_at = self.n_tokens = array("q")

    def begin(self, count: int, *, log: AnswerLog | None, tokens: bool, needs_first_token: bool) -> None:
        """Starts a phase of `count` samples."""
        with self._lock:
            self.issued = self.completed = 0
            self.done = array("q", bytes(8 * count))
            self.first_token_at = array("q", bytes(8 * count if tokens and needs_first_token else 0))
            self.n_tokens = array("q", [MISSING_TOKENS]) * (count if tokens else 0)
            self._needs_first_token = needs_first_token
            self.log = log
            self._closed = False
            self._times_only = log is None and not tokens
            self.first_id = _reserve_ids(count)

    def end(self) -> None:
        """Ends the phase: later answers are dropped, the arrays stay as they are."""
        with self._lock:
            self._closed = True
            self._times_only = False

    def wants_answer(self, sample_id: int) -> bool:
        """Whether the answer of this sample will be logged."""
        position = sample_id - self.first_id
        return self.log is not None and not self._closed and position >= 0 and self.log.wants(position)

    def complete(
        self,
        ids: Sequence[int] | np.ndarray,
        answers: Rows | None = None,
        n_tokens: Rows | None = None,
    ) -> None:
        """See `Responses.complete`; a range of samples in a phase that logs nothing is recorded at once."""
        now = _now()
        if self._times_only and n_tokens is None and type(ids) is range and ids.step == 1:
            first = ids.start - self.first_id
            size = len(ids)
            with self._lock:
                if self._times_only and first >= 0 and first + size <= self.issued:
                    done = self.done
                    if size == 1:
                        fresh = not done[first]
                        if fresh:
                            done[first] = now
                    elif size <= _FEW:
                        fresh = done[first : first + size] == _ZEROS[size]
                        if fresh:
                            done[first : first + size] = array("q", [now]) * size
                    else:
                        part = np.frombuffer(done, np.int64)[first : first + size]
                        fresh = not part.any()
                        if fresh:
                            part[:] = now
                    if fresh:
                        self.completed += size
                        if self._waiting:
                            self._wake_issuer()
                        return
        self.complete_at(now, ids, answers, n_tokens)

    def complete_one(self, now: int, sample_id: int, n_tokens: int = 0) -> None:
        """`complete_at` for one sample in a phase that logs no answers."""
        position = sample_id - self.first_id
        with self._lock:
            if self._times_only and 0 <= position < self.issued and not (done := self.done)[position]:
                done[position] = now
                self.completed += 1
                if self._waiting:
                    self._wake_issuer()
                return
        self.complete_at(now, (sample_id,), None, (n_tokens,))

    def complete_at(
        self,
        now: int,
        ids: Sequence[int] | np.ndarray,
        answers: Rows | None = None,
        n_tokens: Rows | None = None,
        read: Callable[[Any], bytes] | None = None,
    ) -> None:
        """`complete` with everything checked and logged, at a time read before.

        `read` makes the bytes to log of an answer, instead of `as_bytes`.
        """
        if self._closed:
            return
        if self.log is None and not self.n_tokens and len(ids) > _FEW:
            array = np.asarray(ids)
            with self._lock:
                if self._closed or array.dtype.kind in "iu" and self._complete_many(now, array):
                    return
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        data = self._logged(ids, "answer", read, answers)
        counts = self._converted(ids, "number of tokens", int, n_tokens) if n_tokens is not None else {}
        with self._lock:
            if self._closed:
                return
            for k, sample_id in enumerate(ids):
                position = sample_id - self.first_id
                if not self._is_outstanding(position, sample_id, self.done, "complete"):
                    continue
                if self.n_tokens:
                    self.n_tokens[position] = self._checked_tokens(counts.get(k, 0), position)
                if self.log is not None and (k in data or self.log.wants(position)):
                    self.log.answer(position, data.get(k, b""), counts.get(k, 0))
                self.done[position] = now
                self.completed += 1
            self._wake_issuer()

    def _logged(
        self, ids: Sequence[int], what: str, read: Callable[[Any], bytes] | None, rows: Rows | None
    ) -> dict[int, bytes]:
        """The bytes of the rows that are logged, by place."""
        if self.log is None or rows is None:
            return {}
        return self._converted(ids, what, read or as_bytes, rows, self.log.wants)

    def _converted(
        self,
        ids: Sequence[int],
        what: str,
        convert: Callable[[Any], T],
        rows: Rows,
        wants: Callable[[int], bool] | None = None,
    ) -> dict[int, T]:
        """What `convert` makes of the rows of the samples that are wanted, by place; an error where it cannot.

        Not under the lock: it runs code of the system under test, which may answer other samples.
        """
        found: dict[int, T] = {}
        first_id = self.first_id
        for k, sample_id in enumerate(ids):
            if wants is not None and (sample_id < first_id or not wants(sample_id - first_id)):
                continue
            try:
                found[k] = convert(rows[k])
            except BaseException as error:
                # Raised on, it would end a thread of the system's own that has more to answer.
                self.record_error(f"The {what} of sample {sample_id} cannot be taken: {told(error)}")
                if isinstance(error, KeyboardInterrupt) and _in_main_thread():
                    raise
        return found

    def _complete_many(self, now: int, ids: np.ndarray) -> bool:
        """Records many samples at once if nothing is wrong with any; otherwise nothing, and False."""
        positions = ids.astype(np.int64) - self.first_id
        if positions.min() < 0 or positions.max() >= self.issued:
            return False
        done = np.frombuffer(self.done, np.int64)
        if done[positions].any():
            return False
        if not (np.diff(positions) > 0).all() and len(np.unique(positions)) < len(positions):
            return False
        done[positions] = now
        self.completed += len(positions)
        self._wake_issuer()
        return True

    def _wake_issuer(self) -> None:
        if self._waiting and self.completed >= self.issued:
            self._waiting = False
            self._wake.release()

    def first_token(
        self,
        ids: Sequence[int] | np.ndarray,
        tokens: Rows | None = None,
        read: Callable[[Any], bytes] | None = None,
    ) -> None:
        """See `Responses.first_token`; `read` as in `complete_at`."""
        now = _now()
        if self._closed or not self.first_token_at:
            return
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        data = self._logged(ids, "first token", read, tokens)
        with self._lock:
            if self._closed:
                return
            for k, sample_id in enumerate(ids):
                position = sample_id - self.first_id
                if 0 <= position < self.issued and self.done[position]:
                    self._error("Attempted to record token latency after sample was completed")
                elif self._is_outstanding(
                    position, sample_id, self.first_token_at, "record the first token of"
                ):
                    if self.log is not None and k in data:
                        self.log.first_token(position, data[k])
                    self.first_token_at[position] = now

    def wait(self, timeout_s: float = -1) -> bool:
        """Waits until all issued samples are answered, or for `timeout_s`; whether they are.

        For the issuing thread only. -1 waits for ever.
        """
        with self._lock:
            if self.completed >= self.issued:
                return True
            self._waiting = True
        if self._wake.acquire(timeout=timeout_s):
            return True
        with self._lock:
            # An answer may have come between the time-out and here: it has released the lock then.
            late = not self._waiting
            self._waiting = False
        return late and self._wake.acquire()

    def record_error(self, message: str) -> None:
        """Counts an error of the system under test, keeps the first few and prints the very first."""
        with self._lock:
            self._error(message)

    def record_warning(self, message: str) -> None:
        """Keeps a warning for the log, once."""
        with self._lock:
            if message not in self.warnings:
                self.warnings.append(message)

    def _error(self, message: str) -> None:
        self.error_count += 1
        if len(self.errors) < _MESSAGES_KEPT:
            self.errors.append(message)
        if self.error_count == 1:
            print(f"LoadGen: ERROR: {message}", file=sys.stderr, flush=True)

    def _is_outstanding(self, position: int, sample_id: int, times: array, verb: str) -> bool:
        if position < 0:
            self._error(
                "Received completion for an old sample. "
                f"Min expected id: {self.first_id} Actual id: {sample_id}"
            )
        elif position >= self.issued:
            self._error(f"Attempted to {verb} a sample that was never issued. Actual id: {sample_id}")
        elif times[position]:
            self._error(f"Attempted to {verb} a sample twice. Actual id: {sample_id}")
        else:
            return True
        return False

    def _checked_tokens(self, count: int, position: int) -> int:
        """The number of tokens to record: anything below 2 is an error, and 0 then, as officially."""
        if self._needs_first_token and not self.first_token_at[position]:
            self._error("Attempted to record a sample latency before it's first token latency")
        if count == 0:
            self._error("n_tokens argument missing or attempted to record 0 as number of tokens")
        elif count < 0:
            self._error("Attempted to record a negative number of tokens")
        elif count == 1:
            self._error("Number of tokens need to be greater than 1")
        return count if count > 1 else 0


_next_id = 1  # 0 is reserved, and no id is used twice in a process: late answers find nothing.
_ids_lock = threading.Lock()


def _reserve_ids(count: int) -> int:
    global _next_id
    with _ids_lock:
        first = _next_id
        _next_id += count
        return first


def as_bytes(data: Any) -> bytes:
    """A copy of what a bytes-like object or an array of numbers holds, in C order.

    Raises:
        TypeError: it is something else, such as None or text.
    """
    if isinstance(data, bytes):
        return data
    array = np.asarray(data)
    if array.dtype.hasobject or array.dtype.kind == "U":  # of pointers; of UTF-32
        raise TypeError(f"{type(data).__name__} is neither bytes nor an array of numbers")
    return array.tobytes()


def told(error: BaseException) -> str:
    """The kind of an exception and its text, whatever that does."""
    try:
        text = str(error)
    except BaseException:
        text = "its text cannot be had"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
