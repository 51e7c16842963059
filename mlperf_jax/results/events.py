"""The MLPerf log of one run: written through `mlperf_logging.mllog`, read back by whoever judges it.

Values are logged as they were. The keys are those that the official checker wants
(mlperf_logging/compliance_checker/training_4.0.0/*.yaml); what it does not know it ignores, which
is where `compile_time`, `tracked_stats`, `run_labels`, `quality_target`, `published_runs` and `resumed` come from.
Such events must not contain the words `eval_accuracy`, `train_samples`, `global_batch_size` or
`submission_benchmark`: the official rcp_checker takes any line with one of them for that event.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO

from mlperf_logging.mllog.mllog import MLLogger

from mlperf_jax.errors import UserError
from mlperf_jax.goals import Goal, targets
from mlperf_jax.nested import plain
from mlperf_jax.results.clock import WallClock
from mlperf_jax.rounds.published_curves import Beside
from mlperf_jax.rounds.training_logs import CLOCK_MOVED
from mlperf_jax.rounds.training_rules import LOCAL, UNVERIFIED, benchmark_called, find_benchmark

TOKEN = ":::MLLOG "
DIVISIONS = {"mini": "open", "closed": "closed"}
_PROJECT = Path(__file__).parents[2]
Facts = Mapping[str, Any] | None  # an event's metadata


class NullLog:
    """The log of processes other than 0: it says nothing."""

    @property
    def resumed(self) -> bool:
        """Whether this log continues one in which `run_start` stands already; then the events up to it
        must not be logged again."""
        return False

    def start(self, key: str, value: Any = None, metadata: Facts = None, time_ms: int | None = None) -> None:
        """Begins an interval, e.g. "block_start". time_ms: of what happened before now."""
        self._log("start", key, value, metadata, time_ms)

    def end(self, key: str, value: Any = None, metadata: Facts = None, time_ms: int | None = None) -> None:
        """Ends an interval, e.g. "block_stop"."""
        self._log("end", key, value, metadata, time_ms)

    def event(self, key: str, value: Any = None, metadata: Facts = None, time_ms: int | None = None) -> None:
        """Logs a point in time."""
        self._log("event", key, value, metadata, time_ms)

    def _log(self, kind: str, key: str, value: Any, metadata: Facts, time_ms: int | None) -> None:
        """Logs an event; kind: "start", "end" or "event"."""

    def position(self) -> int:
        """Bytes logged so far, all of them on disk: what a checkpoint keeps for `open_log`."""
        return 0

    def time_of(self, key: str) -> int | None:
        """When `key` was first logged, in milliseconds since 1970; None if it was not."""
        return None

    def close(self) -> None:
        """Closes the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventLog(NullLog):
    """A result_<i>.txt that is being written; every event reaches the file at once.

    Args:
        path: the file, which must not exist yet: a log is never overwritten.
        kept: of a log that goes on (see `open_log`), the events that the file holds.
        echo: where each line is shown besides.

    Raises:
        UserError: the file exists or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        kept: Iterable[Event] | None = None,
        echo: TextIO | None = None,
    ) -> None:
        self.path = Path(path)
        self._echo = echo
        self._clock = WallClock()
        self._times: dict[str, int] = {}
        for event in kept or ():
            self._times.setdefault(event.key, event.time_ms)
        # A logger of its own, unknown to logging's tree, so that logs of one process do not mix.
        self._made = _LastLine()
        logger = logging.Logger(str(path), logging.INFO)
        logger.addHandler(self._made)
        # stack_offset 4: past this class, to the line of the caller.
        self._mllog = MLLogger(logger, default_stack_offset=4, root_dir=re.escape(str(_PROJECT)))
        begins = os.O_CREAT | os.O_EXCL if kept is None else 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | begins, 0o644)
        except FileExistsError:
            raise UserError(
                f"{path} exists and is not overwritten; move it away or use another --results_dir."
            ) from None
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); mend that or use another --results_dir."
            ) from error

    @property
    def resumed(self) -> bool:
        return "resumed" in self._times

    def position(self) -> int:
        os.fsync(self._file)
        return os.fstat(self._file).st_size

    def time_of(self, key: str) -> int | None:
        return self._times.get(key)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _log(self, kind: str, key: str, value: Any, metadata: Facts, time_ms: int | None) -> None:
        if moved := self._clock.moved():
            self._write("event", CLOCK_MOVED, moved, {"unit": "seconds"}, None)
        self._write(kind, key, value, metadata, time_ms)

    def _write(self, kind: str, key: str, value: Any, metadata: Facts, time_ms: int | None) -> None:
        self._made.text = ""
        getattr(self._mllog, kind)(key, plain(value), plain(metadata or {}), time_ms=time_ms)
        line = self._made.text
        self._append(line + "\n")
        self._times.setdefault(key, json.loads(line.removeprefix(TOKEN))["time_ms"])
        if self._echo is not None:
            print(line, file=self._echo, flush=True)

    def _append(self, text: str) -> None:
        data = text.encode()
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data)
            if written != len(data):  # the disk is filling up: the next write says why
                written += os.write(self._file, data[written:])
        except OSError as error:
            os.ftruncate(self._file, before)  # no half line
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}); free space and run again."
            ) from error


class _LastLine(logging.Handler):
    """Keeps the line that mllog makes; mllog swallows a handler's errors, so writing is not done here."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        # mllog's own warnings (metadata that overrides `file`) are no events.
        if record.getMessage().startswith(TOKEN):
            self.text = record.getMessage()


def open_log(
    path: str | os.PathLike[str],
    *,
    position: int | None = None,
    lost_dir: str | os.PathLike[str],
    metadata: Facts = None,
    writes: bool = True,
    echo: TextIO | None = None,
) -> NullLog:
    """The log of a run that begins, or continues one that was stopped or killed.

    What the log says after `position` will happen again, so it moves to lost_<n>.txt and the log stays
    without repetition; then a `resumed` event marks it. The clock keeps its first `run_start`. Of a run
    that was killed after step 140 and continues from the checkpoint of step 120:

        result_0.txt, as it was   seed ... run_start ... step 120 | step 130, step 140
                                                         position ^
        result_0.txt, continued   seed ... run_start ... step 120 | resumed {"step": 120, "lost_file": "lost_0.txt"}
        lost_0.txt                                                  step 130, step 140

    Args:
        path: result_<i>.txt, there or not.
        position: `position()` as the restored checkpoint holds it. None without a checkpoint: the
            log is kept up to `run_start`, or if it never got there begins anew.
        lost_dir: the run's folder.
        metadata: of the `resumed` event, e.g. {"step": 120}.
        writes: False in processes other than 0, which get a log that says nothing.
        echo: where each line is shown besides.

    Raises:
        UserError: the log is shorter than `position` or has no line ending there; or it cannot be
            read or written.
    """
    path = Path(path)
    if not writes:
        return NullLog()
    if not path.exists():
        if position:
            raise UserError(
                f"{path} is missing though its run has a checkpoint; "
                "restore it, or use another --results_dir."
            )
        return EventLog(path, echo=echo)
    text = path.read_bytes()
    if position is None:
        position = _after_run_start(text)
    kept, lost = text[:position], text[position:]
    if len(kept) < position or (kept and not kept.endswith(b"\n")):
        raise UserError(
            f"{path} is not the log that the checkpoint knows (no line ends at byte {position}); "
            "restore it, or use another --results_dir."
        )
    events = _parse(path, kept)
    lost_file = move_lost(path, lost, position, Path(lost_dir))
    log = EventLog(path, kept=events, echo=echo)
    if log.time_of("run_start") is not None:
        where = {"lost_bytes": len(lost), "lost_file": lost_file}
        log.event("resumed", metadata={**where, **(metadata or {})})
    return log


def _after_run_start(text: bytes) -> int:
    """Where the line of `run_start` ends, 0 if there is none."""
    end = 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        if b'"key": "run_start"' in line and line.endswith(b"\n"):
            return end
    return 0


def move_lost(path: Path, lost: bytes, position: int, folder: Path) -> str | None:
    """Moves the end of the log into its own file, first written, then cut: nothing can be lost."""
    if not lost:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        n = next(n for n in range(len(os.listdir(folder)) + 1) if not (folder / f"lost_{n}.txt").exists())
        target = folder / f"lost_{n}.txt"
        temporary = target.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            file.write(lost)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        os.truncate(path, position)
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be written ({error.strerror}); mend that and run again."
        ) from error
    return target.name


@dataclasses.dataclass(frozen=True)
class Event:
    """One line of a log. `time_ms`: milliseconds since 1970."""

    key: str
    value: Any
    metadata: dict[str, Any]
    time_ms: int


def read_events(path: str | os.PathLike[str]) -> list[Event]:
    """The events of a log, in order; lines of other kinds are passed over, as the official parser does.

    Raises:
        UserError: the file cannot be read, or a line that claims to be an event is none.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a result log.") from error
    return _parse(path, text)


def _parse(path: str | os.PathLike[str], text: bytes) -> list[Event]:
    events = []
    for number, line in enumerate(text.decode("utf-8", "replace").split("\n"), 1):
        _, token, body = line.rpartition(TOKEN)
        if not token:
            continue
        try:
            raw = json.loads(body)
            event = Event(raw["key"], raw["value"], raw["metadata"] or {}, int(raw["time_ms"]))
            if not isinstance(event.key, str) or not isinstance(event.metadata, dict):
                raise TypeError
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise UserError(
                f"{path}, line {number}, is damaged (not an MLLOG event); restore the log or leave it out."
            ) from None
        events.append(event)
    return events


class WithMetadata(NamedTuple):
    """The value of an event, and what else the checker wants to know of it."""

    value: Any
    metadata: Mapping[str, Any]


def clear_caches() -> tuple[bool, str]:
    """Empties this host's page cache, as the rules want before a run, if the system lets us.

    Returns:
        Whether it was done, and in words what was done or why not; both go into `cache_clear`.
    """
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError as error:
        return False, f"page cache not dropped: {error.strerror} (writing vm.drop_caches needs root)"
    return True, "sync; vm.drop_caches=3 on the host of process 0"


def log_preamble(
    log: NullLog,
    *,
    benchmark: str,
    preset: str,
    system: str,
    seed: int,
    global_batch_size: int,
    gradient_accumulation_steps: int,
    train_samples: int,
    eval_samples: int,
    goals: Sequence[Goal],
    hyperparameters: Mapping[str, Any],
    cache_clear: tuple[bool, str],
    labels: Sequence[str] = (),
    org: str = "mlperf_jax",
    status: str = "research",
) -> None:
    """Logs who ran what with which numbers: everything the checker wants besides the run itself.

    Args:
        benchmark: MLPerf's name, "resnet".
        preset: "mini" is logged as division open, "closed" as closed, where a round of MLPerf Training has the benchmark.
        system: the system's name, logged as the platform.
        train_samples, eval_samples: sizes of the data sets in use.
        goals: the figures to reach.
        hyperparameters: `{mllog key: value}` for what the benchmark has of its own, such as
            `opt_name` and `lars_opt_*`: the workload gives them, in the order to be logged, a value
            as `WithMetadata` where the checker wants to know more of it.
        cache_clear: what `clear_caches` returned, or (False, why it was not tried).
        labels: what else a reader must know, e.g. "fake data".
        org: who ran it.
        status: cloud, onprem, preview or research.
    """
    log.event("submission_benchmark", benchmark)
    log.event("submission_division", DIVISIONS[preset] if find_benchmark(benchmark) else "open")
    log.event("submission_org", org)
    log.event("submission_platform", system)
    log.event("submission_status", status)
    log.event("run_labels", run_labels(preset, labels))
    log.event("quality_target", targets(goals), about_goals(goals, benchmark))
    log.event("cache_clear", cache_clear[0], {"how": cache_clear[1]})
    log.event("seed", seed)
    log.event("global_batch_size", global_batch_size)
    log.event("gradient_accumulation_steps", gradient_accumulation_steps)
    log.event("train_samples", train_samples)
    log.event("eval_samples", eval_samples)
    for key, value in hyperparameters.items():
        value, metadata = value if isinstance(value, WithMetadata) else (value, None)
        log.event(key, value, metadata)


def about_goals(goals: Sequence[Goal], benchmark: str) -> dict[str, Any]:
    """Metadata of `quality_target`: the metric for people and, unless all figures rise, which way each goes."""
    rules = benchmark_called(benchmark).goals(LOCAL)
    told = {"metric": {goal.name: goal.metric for goal in goals}}
    if any(goal.direction.falls for goal in (*goals, *rules)):
        told["direction"] = {goal.name: goal.direction.value for goal in goals}
    return told if len(goals) > 1 else {key: named[goals[0].name] for key, named in told.items()}


def run_labels(preset: str, labels: Sequence[str] = ()) -> list[str]:
    """What every log and table says of a run of ours before any figure."""
    mini = ["mini: not MLPerf's data or model"] if preset == "mini" else []
    return [*mini, *labels, UNVERIFIED]


def block_metadata(first: float, count: float, unit: str = "epoch") -> dict[str, Any]:
    """Metadata of `block_start` and `block_stop`: `count` epochs from number `first` (from 1) on.

    Benchmarks that count samples (unit "samples") log their number instead.
    """
    return {"first_epoch_num": first, "epoch_count": count} if unit == "epoch" else {"samples_count": count}


def eval_metadata(done: float, unit: str = "epoch") -> dict[str, Any]:
    """Metadata of `eval_start`, `eval_accuracy`, `eval_stop`: the epochs (or samples) trained on."""
    return {"epoch_num" if unit == "epoch" else "samples_count": done}


def log_stats(log: NullLog, *, step: int, samples: int, seconds: float, input_seconds: float) -> None:
    """Logs what a block of training did: `tracked_stats`, as submissions do, for the report.

    Args:
        step: steps done so far.
        samples: samples trained on in this block.
        seconds: how long the block took, evaluation not included.
        input_seconds: the part of it spent waiting for input.
    """
    value = {
        "throughput": samples / seconds if seconds else 0.0,
        "samples": samples,
        "seconds": seconds,
        "input_wait_seconds": input_seconds,
    }
    log.event("tracked_stats", value, {"step": step})


def log_published_runs(log: NullLog, published: Beside) -> None:
    """Logs where published runs were after as many samples: `published_runs`, the range of their losses and its median;
    where some of them had ended, how many had reached the target."""
    curve, point = published.curve, published.point
    told: dict[str, float] = {"runs": curve.runs, "reached": curve.ended(published.samples)}
    if point is not None:
        told = {"runs": point.runs, "least": point.least, "median": point.median, "most": point.most}
    numbers = {"batch_size": curve.batch_size, "base_learning_rate": curve.base_lr}
    log.event("published_runs", told, {"samples_count": published.samples, **numbers})


def log_run_stop(log: NullLog, status: str, **metadata: Any) -> None:
    """Ends the run: "success" if the target was reached, else "aborted", with why in the metadata.

    Raises:
        ValueError: it is neither.
    """
    if status not in ("success", "aborted"):
        raise ValueError(f"{status!r} is neither success nor aborted")
    log.end("run_stop", metadata={"status": status, **metadata})
