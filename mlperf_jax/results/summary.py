"""What a finished command tells: the result file, the quality, the times, and with enough runs the score.

All of it is read back from the logs, so that it is what anybody else would find there.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.results.events import Event, read_events
from mlperf_jax.rounds.scoring import olympic_mean
from mlperf_jax.rounds.training_rules import find_benchmark, required_files, unknown_benchmark

_FEWEST_RUNS = 3


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """One log in short. Times in seconds; None is what the log does not hold.

    Attributes:
        status: "success", "aborted" or "unfinished".
        reason: why it was aborted, as logged.
        quality: of the last evaluation.
        time_to_train: run_start to run_stop, as the rules count.
        whole_time: first init_start (model building) to the last event.
        throughput: samples/s of training, evaluation not included.
        resumed: whether the run was continued after a stop, its downtime within its times.
        labels: what must be said with any figure of it.
    """

    path: Path
    benchmark: str
    system: str
    status: str
    reason: str | None
    quality: float | None
    target: float | None
    metric: str
    time_to_train: float | None
    whole_time: float | None
    compile_time: float | None
    throughput: float | None
    resumed: bool
    labels: tuple[str, ...]


def summarize(path: str | os.PathLike[str]) -> RunSummary:
    """Reads a log into its summary.

    Raises:
        UserError: it cannot be read or is damaged, or a figure in it is of no sensible kind.
    """
    events = read_events(path)
    first: dict[str, Event] = {}
    last: dict[str, Event] = {}
    for event in events:
        first.setdefault(event.key, event)
        last[event.key] = event

    def seconds(begin: str, end: Event | None) -> float | None:
        return (end.time_ms - first[begin].time_ms) / 1e3 if begin in first and end else None

    def value(key: str) -> Any:
        return first[key].value if key in first else None

    stop = first.get("run_stop")
    target = first.get("quality_target")
    labels = value("run_labels")
    try:
        return RunSummary(
            path=Path(path),
            benchmark=str(value("submission_benchmark") or "unknown"),
            system=str(value("submission_platform") or "unknown"),
            status=str(stop.metadata.get("status", "unfinished")) if stop else "unfinished",
            reason=stop.metadata.get("reason") if stop else None,
            quality=float(last["eval_accuracy"].value) if "eval_accuracy" in last else None,
            target=float(target.value) if target else None,
            metric=str(target.metadata.get("metric", "quality")) if target else "quality",
            time_to_train=seconds("run_start", stop),
            whole_time=seconds("init_start", events[-1] if events else None),
            compile_time=None if value("compile_time") is None else float(value("compile_time")),
            throughput=_throughput([e.value for e in events if e.key == "tracked_stats"]),
            resumed="resumed" in first,
            labels=tuple(map(str, labels)) if isinstance(labels, list) else (),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} holds a figure that is none ({error}); restore the log or leave it out."
        ) from None


def _throughput(stats: list[dict]) -> float | None:
    seconds = sum(float(s["seconds"]) for s in stats)
    return sum(float(s["samples"]) for s in stats) / seconds if seconds > 0 else None


@dataclasses.dataclass(frozen=True)
class OlympicScore:
    """minutes: the score, None if there is none; remarks: why not, or what to know with it."""

    minutes: float | None
    remarks: tuple[str, ...]


def score(runs: Sequence[RunSummary]) -> OlympicScore:
    """The olympic score of runs of one benchmark: fastest and slowest dropped, mean of the rest.

    A run that missed its target counts as the slowest; more of them than are dropped and there
    is no score. Resumed and unfinished runs have no time by the rules and are left out.
    """
    benchmark = runs[0].benchmark if runs else "unknown"
    dropped = (find_benchmark(benchmark) or unknown_benchmark(benchmark)).dropped
    counted = [run for run in runs if not run.resumed and run.status in ("success", "aborted")]
    remarks = [
        f"{run.path.name} is left out ({'resumed' if run.resumed else run.status})"
        for run in runs
        if run not in counted
    ]
    needed = max(_FEWEST_RUNS, 2 * dropped + 1)
    if len(counted) < needed:
        return OlympicScore(
            None, (f"no score: {len(counted)} complete runs, and it takes {needed}", *remarks)
        )
    required = required_files(benchmark)
    if required and len(counted) < required:
        remarks.append(f"MLPerf requires {required} runs of {benchmark}; these are {len(counted)}")
    missed = sum(run.status != "success" for run in counted)
    if missed > dropped:
        return OlympicScore(None, (f"no score: {missed} of {len(counted)} runs missed the target", *remarks))
    if missed:
        remarks.append("a run that missed the target counts as the slowest")
    times = [
        run.time_to_train for run in counted if run.status == "success" and run.time_to_train is not None
    ]
    times += [math.inf] * (len(counted) - len(times))
    return OlympicScore(olympic_mean(times, dropped) / 60, tuple(remarks))


def end_message(runs: Sequence[RunSummary]) -> str:
    """What to print at the end of a command that made `runs`, in several lines."""
    lines = []
    for run in runs:
        lines += [f"{run.benchmark} on {run.system} ({'; '.join(run.labels)})", *_run_lines(run), ""]
    if len(runs) >= _FEWEST_RUNS:
        result = score(runs)
        if result.minutes is not None:
            lines.append(
                _line("score", f"{result.minutes:.3f} min (mean without the fastest and the slowest)")
            )
        lines += [_line("", remark) for remark in result.remarks]
    return "\n".join(lines).rstrip()


def _run_lines(run: RunSummary) -> list[str]:
    lines = [_line("result file", str(run.path)), _line("quality", _quality(run))]
    if run.time_to_train is not None:
        resumed = ", resumed: the time it was down is in it, no score" if run.resumed else ""
        lines.append(_line("time to train", f"{_time(run.time_to_train)} (run_start to run_stop{resumed})"))
    if run.whole_time is not None:
        compiling = "" if run.compile_time is None else f", of which compilation {run.compile_time:.1f} s"
        lines.append(_line("whole time", f"{_time(run.whole_time)} (model building to end{compiling})"))
    if run.throughput is not None:
        lines.append(_line("throughput", f"{run.throughput:.1f} samples/s in training"))
    return lines


def _quality(run: RunSummary) -> str:
    reached = {"success": "reached", "aborted": "not reached"}.get(run.status, "the run is unfinished")
    figure = "never evaluated" if run.quality is None else f"{run.metric} {run.quality:.4f}"
    target = "" if run.target is None else f", target {run.target:.4f}"
    reason = f" ({run.reason})" if run.reason else ""
    return f"{figure}{target}: {reached}{reason}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.2f} min"


def _line(name: str, text: str) -> str:
    return f"  {name:<14} {text}"
