"""Issuing the queries of one phase: the loops of the four scenarios and who watches over them."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import itertools
import queue
import sys
import threading
import time
import traceback
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from loadgen_py.responses import ResponseRecorder, told
from loadgen_py.schedule import Queries
from loadgen_py.settings import EffectiveSettings, TestScenario
from loadgen_py.sut import CallbackSut, SystemUnderTest

_MOST_OVERSHOOT_NS = 50_000  # of a sleep, that is reckoned with
_JUDGE_EVERY = 512  # queries between two looks at whether a peak-search probe can still pass
_POLL_S = 0.02

_now = time.perf_counter_ns


@dataclasses.dataclass
class Phase:
    """One series of queries over one loaded set, and what became of it.

    Attributes:
        accuracy: no stop rule applies; every generated query is issued.
        most_slow_queries: end the phase once more queries are over the bound than this.
        start_ns, start_wall: when issuing began, `time.perf_counter_ns` and `time.time`.
        issued_at: `[queries]` ns, when each query was issued.
        errors, notes: what goes into the detail log; errors count as such there.
        ran_out: all generated queries were issued before the stop rules were met.
        stop: set by any thread to make the loop end after the current query.
        gave_up: the probe could not pass any more.
        interrupted: by the user.
        broken: why the phase could not be carried through: interrupted, timed out, or the
            system under test raised. Such a run is INVALID.
    """

    settings: EffectiveSettings
    queries: Queries
    responses: ResponseRecorder
    accuracy: bool
    most_slow_queries: int | None = None
    start_ns: int = 0
    start_wall: float = 0.0
    issued_at: array = dataclasses.field(default_factory=lambda: array("q"))
    errors: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    ran_out: bool = False
    stop: bool = False
    gave_up: bool = False
    interrupted: bool = False
    broken: str | None = None

    @property
    def queries_issued(self) -> int:
        """Queries handed to the system under test so far."""
        if self.settings.scenario == TestScenario.Offline:
            return int(self.responses.issued > 0)
        return self.responses.issued // self.queries.samples_per_query


def issue_queries(phase: Phase, sut: SystemUnderTest | CallbackSut) -> None:
    """Issues the phase's queries, flushes, and waits for the answers; fills in `phase`.

    With a time-out the queries come from a thread of their own, because a call that hangs
    cannot be taken back, only left behind. Never raises: see `Phase.broken`.
    """
    timeout_ms = phase.settings.requested.sut_timeout_ms
    with _rare_collections():
        if not timeout_ms:
            _guarded(phase, sut)
            return
        worker = threading.Thread(target=_guarded, args=(phase, sut), name="loadgen-issue", daemon=True)
        worker.start()
        try:
            _watch(phase, worker, timeout_ms / 1000)
        except BaseException as error:
            _break_off(phase, error, "A signal's handler")
            worker.join(timeout=1.0)


def _guarded(phase: Phase, sut: SystemUnderTest | CallbackSut) -> None:
    try:
        with _fine_timer(), _on_threads(phase, sut.issue) as issue:
            _LOOPS[phase.settings.scenario](phase, _Arguments(phase, sut), issue)
        if not phase.broken:
            sut.flush()
            _wait_for_tail(phase)
    except BaseException as error:  # whatever the user's callbacks raise: no answer may be missing unseen
        _break_off(phase, error)


def _break_off(phase: Phase, error: BaseException, who: str = "The system under test") -> None:
    phase.stop = True
    if isinstance(error, KeyboardInterrupt):
        phase.interrupted = True
        phase.broken = "Interrupted by the user"
    else:
        phase.broken = phase.broken or f"{who} raised {told(error)}"
        traceback.print_exception(error)


@contextmanager
def _on_threads(phase: Phase, issue: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`issue`, or in Server what hands each query to the next of `server_num_issue_query_threads`."""
    settings = phase.settings
    count = min(settings.requested.server_num_issue_query_threads, phase.queries.count)
    if settings.scenario != TestScenario.Server or count < 2:
        yield issue
        return

    def work(waiting: queue.SimpleQueue[tuple | None]) -> None:
        try:
            while (arguments := waiting.get()) is not None and not phase.stop:
                issue(*arguments)
        except BaseException as error:
            _break_off(phase, error)

    queues: list[queue.SimpleQueue[tuple | None]] = [queue.SimpleQueue() for _ in range(count)]
    threads = [threading.Thread(target=work, args=(q,), name="loadgen-issue", daemon=True) for q in queues]
    turn = itertools.cycle(queues)
    try:
        for thread in threads:
            thread.start()
        yield lambda *arguments: next(turn).put(arguments)
    finally:
        for waiting in queues:
            waiting.put(None)
    for thread in threads:
        thread.join()


def _watch(phase: Phase, worker: threading.Thread, timeout_s: float) -> None:
    """Waits for the worker as long as answers come in or nothing is outstanding."""
    responses, progress, since = phase.responses, None, time.monotonic()
    while worker.is_alive():
        worker.join(timeout=min(_POLL_S, timeout_s / 4))
        now_at = (responses.issued, responses.completed)
        idle = responses.completed >= responses.issued and phase.queries_issued < phase.queries.count
        if now_at != progress or (idle and phase.settings.scenario == TestScenario.Server):
            progress, since = now_at, time.monotonic()
        elif time.monotonic() - since > timeout_s and worker.is_alive():
            outstanding = responses.issued - responses.completed
            phase.broken = (
                f"The system under test gave no answer for {timeout_s:g} s (sut_timeout_ms) "
                f"with {outstanding} of {responses.issued} issued samples outstanding"
            )
            phase.stop = True
            return


def _enforced_limit_ns(settings: EffectiveSettings) -> int:
    return settings.max_duration_ns if settings.requested.offline_enforce_max_duration else 0


def _wait_for_tail(phase: Phase) -> None:
    """Waits for the last answers; in an enforced Offline run only until `max_duration`."""
    settings = phase.settings
    limit_ns = _enforced_limit_ns(settings)
    if settings.scenario != TestScenario.Offline or phase.accuracy or not limit_ns:
        phase.responses.wait()
        return
    left_ns = phase.start_ns + limit_ns - _now()
    if not phase.responses.wait(max(left_ns, 0) / 1e9):
        phase.errors.append(
            f"Ending early: Max test duration reached. {phase.responses.completed} of "
            f"{phase.responses.issued} issued samples were answered."
        )


class _Arguments:
    """What `issue` is called with; made before the clock is read."""

    def __init__(self, phase: Phase, sut: SystemUnderTest | CallbackSut) -> None:
        self._indices, self._first_id = phase.queries.indices, phase.responses.first_id
        self._size = phase.queries.samples_per_query
        self._callbacks = sut if isinstance(sut, CallbackSut) else None

    def __call__(self, first: int, stop: int) -> tuple:
        """Of a query of the samples from `first` to `stop`."""
        ids, indices = range(self._first_id + first, self._first_id + stop), self._indices[first:stop]
        return (ids, indices) if self._callbacks is None else self._callbacks.query(ids, indices)

    def each(self) -> Iterator[tuple]:
        """Of query after query."""
        if self._callbacks is not None and self._size == 1:
            return self._callbacks.singles(self._first_id, self._indices)
        return (self(a, a + self._size) for a in range(0, len(self._indices), self._size))


def _one_at_a_time(phase: Phase, arguments: _Arguments, issue: Callable[..., Any]) -> None:
    """SingleStream and MultiStream: a query is issued once the one before is answered."""
    settings, responses, queries = phase.settings, phase.responses, phase.queries
    min_count, duration_ns = settings.min_query_count, settings.target_duration_ns
    limits = _Limits(phase)
    size, checked, limited, clock = queries.samples_per_query, not phase.accuracy, limits.set, _now
    issued_at = phase.issued_at = array("q", bytes(8 * queries.count))
    _start(phase)
    start = phase.start_ns
    stop = 0
    for position, query in enumerate(arguments.each()):
        stop += size
        responses.issued = stop
        issued_at[position] = now = clock()
        issue(*query)
        if responses.completed < stop:
            responses.wait()
        if checked:
            if position + 1 >= min_count and now - start >= duration_ns:
                phase.notes.append("Ending naturally: Minimum query count and test duration met.")
                return
            if limited and limits.reached(position + 1, now - start):
                return
        if phase.stop:
            return
    phase.ran_out = checked


def _server(phase: Phase, arguments: _Arguments, issue: Callable[..., Any]) -> None:
    """Server: each query at its own time, whatever is outstanding."""
    settings, responses, queries = phase.settings, phase.responses, phase.queries
    limits, checked, clock = _Limits(phase), not phase.accuracy, _now
    max_async = settings.max_async_queries if checked else 0
    coalesce = settings.requested.server_coalesce_queries
    most_slow = phase.most_slow_queries
    count = queries.count
    issued_at = phase.issued_at = array("q", bytes(8 * count))
    _start(phase)
    start, wait = phase.start_ns, _Alarm(responses).wait
    due_at = (queries.due_ns + start).data
    stop, inline, query = 0, False, ()
    each = arguments.each()
    while stop < count:
        first, stop = stop, stop + 1
        if not coalesce:
            query = next(each)
        due = due_at[first]
        now = clock()
        if now < due:
            now = wait(due, inline)
        if coalesce:
            while stop < count and due_at[stop] <= now:
                issued_at[stop] = now
                stop += 1
            query = arguments(first, stop)
        issued_at[first] = now
        responses.issued = stop
        issue(*query)
        inline = responses.completed == stop
        if checked:
            if max_async and stop - responses.completed > max_async:
                phase.errors.append(
                    "IssueQueryThread 0 Ending early: Too many outstanding queries. "
                    f"issued {stop} outstanding {stop - responses.completed}"
                )
                return
            if limits.set and limits.reached(stop, now - start):
                return
            if most_slow is not None and not stop % _JUDGE_EVERY and _too_many_slow(phase, stop, most_slow):
                return
        if phase.stop:
            return


def _offline(phase: Phase, arguments: _Arguments, issue: Callable[..., Any]) -> None:
    """Offline: one query with all samples, or parts of it where `max_duration` is enforced."""
    settings, responses = phase.settings, phase.responses
    size = phase.queries.samples_per_query * phase.queries.count
    part = size
    limit_ns = _enforced_limit_ns(settings)
    if not phase.accuracy and limit_ns:
        part = settings.performance_sample_count
    query = arguments(0, min(part, size))
    phase.issued_at = array("q", [0])
    _start(phase)
    stop = 0
    while stop < size:
        stop = min(stop + part, size)
        responses.issued = stop
        if not phase.issued_at[0]:
            phase.issued_at[0] = _now()
        issue(*query)
        if phase.stop or (part < size and _now() - phase.start_ns > limit_ns):
            break
        if stop < size:
            query = arguments(stop, min(stop + part, size))
    if not phase.accuracy and stop == size:
        phase.notes.append("Ending naturally: Minimum query count and test duration met.")


_LOOPS = {
    TestScenario.SingleStream: _one_at_a_time,
    TestScenario.MultiStream: _one_at_a_time,
    TestScenario.Server: _server,
    TestScenario.Offline: _offline,
}


class _Limits:
    """`max_query_count` and `max_duration`, which end a performance run with an error."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        self._count = phase.settings.requested.max_query_count
        self._duration_ns = phase.settings.max_duration_ns
        self.set = bool(self._count or self._duration_ns)

    def reached(self, queries: int, elapsed_ns: int) -> bool:
        if self._count and queries >= self._count:
            reason = f"Max query count reached. query_count {queries}"
        elif self._duration_ns and elapsed_ns > self._duration_ns:
            reason = f"Max test duration reached. duration_ns {elapsed_ns}"
        else:
            return False
        self._phase.errors.append(f"IssueQueryThread 0 Ending early: {reason}")
        return True


def _start(phase: Phase) -> None:
    phase.start_wall = time.time()
    phase.start_ns = _now()


class _Alarm:
    """Waits for moments: sleeps short of them by what sleeping overshoots, and spins the rest.

    Spinning all the time would be as exact on an idle machine, but the scheduler takes a
    thread that never sleeps off the processor for milliseconds on a busy one.
    """

    def __init__(self, responses: ResponseRecorder) -> None:
        self._responses = responses
        self._overshoot = _MOST_OVERSHOOT_NS // 2  # a running mean

    def wait(self, due: int, inline: bool) -> int:
        """Waits for `due` and returns the time.

        Where the last query was answered `inline`, before the call returned, twice the usual
        overshoot is left to spin; else less, because a spinning thread keeps the interpreter
        lock from the one that works on an answer, and none while an answer is outstanding.
        """
        responses = self._responses
        margin = 2 * self._overshoot if inline else self._overshoot
        left = due - _now()
        if left > margin:
            time.sleep((left - margin) * 1e-9)
            overshoot = min(_now() - (due - margin), _MOST_OVERSHOOT_NS)
            self._overshoot += (overshoot - self._overshoot) // 8
        while (now := _now()) < due:
            if responses.completed < responses.issued:
                time.sleep((due - now) * 1e-9)
        return now


def _too_many_slow(phase: Phase, issued: int, most: int) -> bool:
    """Whether more queries are over the bound already than the whole run may have."""
    done = np.frombuffer(phase.responses.done, np.int64)[:issued]
    ended = np.where(done > 0, done, _now())
    late = ended - (phase.queries.due_ns[:issued] + phase.start_ns) > phase.settings.target_latency_ns
    phase.gave_up = int(np.count_nonzero(late)) > most
    return phase.gave_up


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Keeps the garbage collector from walking over all that was there before, and from coming often.

    A full collection of a large heap stops every thread for longer than many a latency bound,
    and a million response objects are walked over several times.
    """
    thresholds = gc.get_threshold()
    freeze = gc.get_freeze_count() == 0  # else somebody did, and it is theirs to undo
    if freeze:
        gc.freeze()
    gc.set_threshold(max(thresholds[0], 50_000) if thresholds[0] else 0, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if freeze:
            gc.unfreeze()


@contextmanager
def _fine_timer() -> Iterator[None]:
    """Makes this thread's sleeps end on time: Linux lets them overshoot by 50 us otherwise."""
    set_slack, get_slack = 29, 30  # PR_SET_TIMERSLACK, PR_GET_TIMERSLACK
    if not sys.platform.startswith("linux"):
        yield
        return
    prctl = ctypes.CDLL(None).prctl
    before = prctl(get_slack, 0, 0, 0, 0)
    prctl(set_slack, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(set_slack, max(before, 0), 0, 0, 0)
