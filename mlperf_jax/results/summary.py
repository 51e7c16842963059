"""What a finished command tells: the result file, the quality, the times, and of several runs the score or a mean.

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
from mlperf_jax.goals import Goal, figures, reached
from mlperf_jax.results.events import Event, read_events
from mlperf_jax.rounds.qualities import told_goals
from mlperf_jax.rounds.scoring import score_runs
from mlperf_jax.rounds.training_logs import RunLog, read_run
from mlperf_jax.rounds.training_rules import LOCAL, benchmark_called


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """One log in short. Times in seconds; None is what the log does not hold.

    Attributes:
        status: "success", "aborted" or "unfinished".
        reason: why it was aborted, as logged.
        figures: of the last evaluation, by the names of the goals; None where there was none.
        goals: what was to be reached, or where that is not logged the quality alone, with a target of NaN.
        time_to_train: run_start to run_stop, as the rules count.
        whole_time: first init_start (model building) to the last event.
        cached: how many of its programs were kept from before, "" where none are kept.
        throughput: samples/s of training, evaluation not included.
        clock: what is wrong with the clock that it was timed by, "" if nothing is known to be.
        resumed: whether the run was continued after a stop, its downtime within its times.
        labels: what must be said with any figure of it.
    """

    path: Path
    benchmark: str
    system: str
    status: str
    reason: str | None
    figures: dict[str, float] | None
    goals: tuple[Goal, ...]
    time_to_train: float | None
    whole_time: float | None
    compile_time: float | None
    cached: str
    throughput: float | None
    clock: str
    resumed: bool
    labels: tuple[str, ...]

    @property
    def reached(self) -> bool:
        """Whether it ended as a success, with figures that are one."""
        goals = [goal for goal in self.goals if not math.isnan(goal.target)]
        return self.status == "success" and (self.figures is None or reached(goals, self.figures))


def summarize(path: str | os.PathLike[str]) -> RunSummary:
    """Reads a log into its summary.

    Raises:
        UserError: it cannot be read or is damaged, or a figure in it is of no sensible kind.
    """
    events = read_events(path)
    run = read_run(Path(path)) if events else RunLog(Path(path), "", [])
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
    labels = value("run_labels")
    try:
        benchmark = str(value("submission_benchmark") or "unknown")
        goals = _goals(first.get("quality_target"), benchmark)
        return RunSummary(
            path=Path(path),
            benchmark=benchmark,
            system=str(value("submission_platform") or "unknown"),
            status=str(stop.metadata.get("status", "unfinished")) if stop else "unfinished",
            reason=stop.metadata.get("reason") if stop else None,
            figures=_figures(goals, last["eval_accuracy"]) if "eval_accuracy" in last else None,
            goals=goals,
            time_to_train=None if run.minutes is None else 60 * run.minutes,
            whole_time=seconds("init_start", events[-1] if events else None),
            compile_time=None if value("compile_time") is None else float(value("compile_time")),
            cached=_cached(first.get("compile_time")),
            throughput=_throughput([e.value for e in events if e.key == "tracked_stats"]),
            clock=run.clock,
            resumed="resumed" in first,
            labels=tuple(map(str, labels)) if isinstance(labels, list) else (),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} holds a figure that is none ({error}); restore the log or leave it out."
        ) from None


def _goals(target: Event | None, benchmark: str) -> tuple[Goal, ...]:
    if target is None:
        return (Goal("quality", math.nan),)
    goals = told_goals(target.value, target.metadata, benchmark_called(benchmark).goals(LOCAL))
    if not goals:
        raise ValueError("the target is no number")
    return goals


def _figures(goals: Sequence[Goal], evaluation: Event) -> dict[str, float]:
    found = figures(goals, evaluation.value)
    return {goal.name: float(found[goal.name]) for goal in goals}


def _cached(compiled: Event | None) -> str:
    told = compiled.metadata if compiled else {}
    return f"{len(told['cached'])} of {len(told['seconds'])}" if "cached" in told else ""


def _throughput(stats: list[dict]) -> float | None:
    seconds = sum(float(s["seconds"]) for s in stats)
    return sum(float(s["samples"]) for s in stats) / seconds if seconds > 0 else None


def end_message(runs: Sequence[RunSummary], logs: Sequence[Path] = ()) -> str:
    """What to print at the end of a command, in several lines.

    Args:
        runs: that the command made.
        logs: of all finished runs of the same config in the folder, these among them; the score is theirs.
    """
    lines = []
    for run in runs:
        lines += [f"{run.benchmark} on {run.system} ({'; '.join(run.labels)})", *_run_lines(run), ""]
    logs = logs or [run.path for run in runs]
    if len(logs) > len(runs):
        others = f"{len(logs)} with this config in {logs[0].parent}, of which this command made {len(runs)}"
        lines.append(_line("runs", others))
    if len(logs) > 1:
        lines += _score_lines(runs[0].benchmark, logs)
    return "\n".join(lines).rstrip()


def _score_lines(benchmark_name: str, logs: Sequence[Path]) -> list[str]:
    """The score by the rules, as a report has it; else why there is none, and the mean that there is."""
    benchmark = benchmark_called(benchmark_name)
    score = score_runs([read_run(path) for path in logs], benchmark, LOCAL)
    if score.minutes is not None:
        ends = "the fastest and the slowest" if benchmark.dropped == 1 else f"{benchmark.dropped} at each end"
        lines = [_line("score", f"{score.minutes:.3f} min (mean without {ends})")]
    else:
        lines = [_line("no score", score.reason)]
        if score.mean_minutes is not None:
            told = (
                f"{score.mean_minutes:.3f} min (of the {score.converged} that converged, which is no score)"
            )
            lines.append(_line("mean", told))
    return lines + [_line("", remark) for remark in score.remarks]


def _run_lines(run: RunSummary) -> list[str]:
    lines = [_line("result file", str(run.path)), _line("quality", _quality(run))]
    if run.time_to_train is not None:
        notes = ", resumed: the time it was down is in it, no score" if run.resumed else ""
        notes += f"; the run {run.clock}, without which this is counted, no score" if run.clock else ""
        lines.append(_line("time to train", f"{_time(run.time_to_train)} (run_start to run_stop{notes})"))
    if run.whole_time is not None:
        compiling = "" if run.compile_time is None else f", of which compilation {run.compile_time:.1f} s"
        compiling += f" with {run.cached} programs kept from before" if run.cached else ""
        lines.append(_line("whole time", f"{_time(run.whole_time)} (model building to end{compiling})"))
    if run.throughput is not None:
        lines.append(_line("throughput", f"{run.throughput:.1f} samples/s in training"))
    return lines


def _quality(run: RunSummary) -> str:
    ended = "reached" if run.reached else "not reached"
    reason = f" ({run.reason})" if run.reason else ""
    told = "; ".join(_figure(goal, run.figures) for goal in run.goals)
    return f"{told}: {'the run is unfinished' if run.status == 'unfinished' else ended}{reason}"


def _figure(goal: Goal, found: dict[str, float] | None) -> str:
    figure = "never evaluated" if found is None else f"{goal.metric} {found[goal.name]:.4f}"
    return figure if math.isnan(goal.target) else f"{figure}, target {goal.target:.4f}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.2f} min"


def _line(name: str, text: str) -> str:
    return f"  {name:<14} {text}"
