"""Reads training result logs of every MLPerf round, fast and without trust.

Only lines with a key from `KEYS` are decoded: trees of thousands of logs hold millions of others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.goals import Quality
from mlperf_jax.rounds.log_lines import DAMAGE, Event, any_event, decode, event_lines, recognized
from mlperf_jax.rounds.objects import number
from mlperf_jax.rounds.qualities import evaluations

KEYS = frozenset(
    b"""run_start run_stop init_start init_stop eval_start eval_stop eval_accuracy eval_error eval_result
    eval_target quality_target global_batch_size gradient_accumulation_steps train_samples
    submission_benchmark submission_division submission_org submission_platform submission_status
    opt_base_learning_rate opt_name seed compile_time run_labels resumed clock_moved""".split()
)
CLOCK_MOVED = "clock_moved"
"""A log of ours says so where the wall clock was set, by how many seconds; the events before keep their times."""
_BEGINS = (b"init_start", b"run_start")
_WITHIN = ("run_stop", "eval_start", "eval_stop", "eval_accuracy", "eval_error")
_REPEATED = (CLOCK_MOVED, "eval_start", "eval_stop", "eval_accuracy", "eval_error", "eval_result")
_STATS = (b"tracked_stats", b"throughput")
_MOST_STATS = 200  # throughput figures kept of one log
_MOST_EVENTS = 100_000  # kept of one log
_TOGETHER_MS = 60_000  # within which all processes of a run begin
_DRIFT, _UNREST_S = 0.01, 0.05  # by how much the wall clock may part from a steady one unseen


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation. minutes: since run_start. found: its figures. epoch: epochs or samples trained, as logged."""

    minutes: float
    found: Quality
    epoch: float | None

    @property
    def quality(self) -> float:
        """Its figure, of several the first."""
        return next(iter(self.found.values())) if isinstance(self.found, dict) else self.found


@dataclasses.dataclass
class Throughput:
    """What training did over time, thinned out evenly where a log holds much of it.

    Attributes:
        points: (milliseconds of the log's clock, samples/s).
        input_wait: seconds of waiting for input in all; None where the log does not say (others').
        seconds: of training in all, as a steady clock counted them; 0.0 where the log does not say.
    """

    points: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    input_wait: float | None = None
    seconds: float = 0.0
    _seen: int = 0
    _stride: int = 1

    def due(self) -> bool:
        """Whether the next figure is one of those kept; to be asked once for each."""
        self._seen += 1
        return (self._seen - 1) % self._stride == 0

    def add(self, time_ms: float, rate: float) -> None:
        self.points.append((time_ms, rate))
        if len(self.points) >= _MOST_STATS:
            self.points = self.points[::2]
            self._stride *= 2


@dataclasses.dataclass
class RunLog:
    """One run as its log tells it. Times in minutes; None is what the log does not hold.

    Attributes:
        format: "MLPv0.5.0", "MLL" or "MLLOG".
        events: the events of `KEYS` in order of the lines; what happens once is there once, as first logged.
        minutes: run_start to run_stop, as far as the log knows without what the clock was set by.
        clock: what is wrong with the clock that it was timed by, as "ran under a clock that was set back"; "" if
            nothing is known to be.
        converged: whether the run reached its target; None where the log does not say.
        evaluations: in order.
        throughput: from `tracked_stats` or `throughput`.
        damaged: how many lines looked like events of `KEYS` and were none.
    """

    path: Path
    format: str
    events: list[Event]
    minutes: float | None = None
    converged: bool | None = None
    evaluations: list[Evaluation] = dataclasses.field(default_factory=list)
    throughput: Throughput = dataclasses.field(default_factory=Throughput)
    damaged: int = 0
    clock: str = ""
    _once: dict[str, Event] = dataclasses.field(default_factory=dict)

    def add(self, event: Event) -> None:
        if event.key not in _REPEATED:
            self._once[event.key] = event
        if len(self.events) < _MOST_EVENTS:
            self.events.append(event)

    def has(self, key: bytes) -> bool:
        """Whether another event of `key` would say nothing new: some submissions log from every process."""
        return key.decode() in self._once

    def first(self, key: str) -> Event | None:
        return self._once.get(key)

    def value(self, key: str) -> Any:
        """Value of the event of `key`, None if there is none."""
        return self._once[key].value if key in self._once else None

    def is_of_another(self, begin: Event) -> bool:
        """Whether a second `run_start` or `init_start` is of another run, and not of another process of this one.

        Where every process logs, all of them begin before anything is evaluated; and since v0.7 nothing is
        initialized after `run_start`.
        """
        start = self.first("run_start")
        if start is None:
            return False
        if begin.key == "init_start" and self.format == "MLLOG" and begin.time_ms > start.time_ms:
            return True
        if begin.key == "run_start" and begin.time_ms < start.time_ms - _TOGETHER_MS:
            return True
        within = next((event for event in self.events if event.key in _WITHIN), None)
        return within is not None and begin.time_ms > within.time_ms

    @property
    def start_ms(self) -> float | None:
        return self._once["run_start"].time_ms if "run_start" in self._once else None

    @property
    def ours(self) -> bool:
        """Whether this project wrote the log, which then says how it must be labelled."""
        return "run_labels" in self._once

    @property
    def resumed(self) -> bool:
        return "resumed" in self._once

    @property
    def labels(self) -> tuple[str, ...]:
        """What must be said with any figure of a run of ours; empty in anybody else's log."""
        labels = self.value("run_labels")
        return tuple(map(str, labels)) if isinstance(labels, list) else ()

    @property
    def batch_size(self) -> int | None:
        found = number(self.value("global_batch_size"))
        return int(found) if found else None


def read_run(path: Path) -> RunLog:
    """Reads a log, packed with gzip or not.

    Raises:
        UserError: it cannot be read, holds no line of any MLPerf format, or more than one run.
    """
    log = RunLog(path, "", [])
    formats: set[str] = set()
    for line_number, line in event_lines(path):
        try:
            formats.add(_take(line, line_number, log))
        except DAMAGE:
            log.damaged += 1
    if not formats:
        what = "holds only damaged MLPerf lines" if log.damaged else "holds no MLPerf log line"
        raise UserError(f"{path} {what}.")
    log.format = min(formats)
    _interpret(log)
    return log


def _take(line: bytes, line_number: int, log: RunLog) -> str:
    """Adds what a line says to `log`; returns its format."""
    found, key, _ = recognized(line)
    log.format = log.format or found
    if key in KEYS and not log.has(key):
        log.add(any_event(line, line_number))
    elif key in _BEGINS and found == log.format and log.is_of_another(any_event(line, line_number)):
        raise UserError(f"{log.path} holds two runs in one file (another begins in line {line_number}).")
    elif found == "MLLOG" and key in _STATS:
        _take_throughput(line[8:], log)
    return found


def _take_throughput(text: bytes, log: RunLog) -> None:
    """All figures of ours are read, for the sum of waiting; of others' no more than are shown."""
    due = log.throughput.due()
    if not (due or log.ours):
        return
    raw = decode(text)
    told = raw["value"] if isinstance(raw["value"], dict) else {"throughput": raw["value"]}
    rate, wait = number(told.get("throughput")), number(told.get("input_wait_seconds"))
    if wait is not None:
        log.throughput.input_wait = (log.throughput.input_wait or 0.0) + wait
    log.throughput.seconds += (number(told.get("seconds")) or 0.0) if log.ours else 0.0
    if due and rate is not None:
        log.throughput.add(float(raw["time_ms"]), rate)


def _interpret(log: RunLog) -> None:
    """Fills in what the events mean."""
    start = log.start_ms
    stop = log.first("run_stop")
    if start is not None:
        log.evaluations = [
            Evaluation((one.event.time_ms - start) / 60_000, one.found, one.epoch)
            for one in evaluations(log.events)
        ]
        if stop is not None:
            moved = clock_moved(log.events, stop.line)
            seconds = (stop.time_ms - start) / 1000 - moved
            log.minutes = seconds / 60 if seconds > 0 else None
            log.clock = _clock(moved, seconds, log.throughput.seconds)
            log.converged = _success(stop)
    _offline_evaluation(log)


def clock_moved(events: Iterable[Event], last_line: int) -> float:
    """Seconds that the clock was set forward by in the events between `run_start` and a line."""
    total, running = 0.0, False
    for event in events:
        if event.key == "run_start":
            running = True
        elif event.key == CLOCK_MOVED and running and event.line <= last_line:
            total += number(event.value) or 0.0
    return total


def outlasts(counted: float, passed: float) -> bool:
    """Whether seconds that a steady clock counted are more than those that passed by the log's times."""
    return counted > passed * (1 + _DRIFT) + _UNREST_S


def _clock(moved: float, seconds: float, trained: float) -> str:
    if seconds > 0 and outlasts(trained, seconds):
        return f"ran under a clock by which {seconds:,.1f} s passed where it trained for {trained:,.1f} s"
    if moved:
        return f"ran under a clock that was set {'forward' if moved > 0 else 'back'} by {abs(moved):,.1f} s"
    return (
        ""
        if seconds > 0
        else f"ran under a clock that was set back: it ends {-seconds:,.1f} s before it begins"
    )


def _success(stop: Event) -> bool | None:
    """What run_stop says of the run, None if nothing."""
    said = stop.metadata.get("status")
    if said is None and isinstance(stop.value, dict):  # v0.5
        said = stop.value.get("success", stop.value.get("status"))
    if said is None:
        return None
    return str(said).strip().lower() in ("success", "true", "1")


def _offline_evaluation(log: RunLog) -> None:
    """MiniGo as logged in v0.6: models are evaluated after the run, and `eval_result` of the first that
    passes gives the seconds from run_start to when it was made. Later rounds moved run_stop there."""
    if log.format != "MLL":
        return
    for event in log.events:
        seconds = number(event.metadata.get("timestamp")) if event.key == "eval_result" else None
        if seconds and seconds > 0:
            log.minutes, log.converged = seconds / 60, True
            return
