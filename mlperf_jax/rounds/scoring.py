"""The score of a set of runs, by the rules' "Benchmark Results"."""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlperf_jax.goals import Goal
from mlperf_jax.goals import reached as goals_reached
from mlperf_jax.rounds.qualities import figures, find_goals
from mlperf_jax.rounds.training_logs import RunLog
from mlperf_jax.rounds.training_rules import Benchmark

NCF_RUNS = 100


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of one result.

    Attributes:
        minutes: the score; None where the runs make none.
        reason: why there is none.
        remarks: what to know with it.
        runs: how many runs there are, unreadable ones included.
        converged: how many reached the target.
        kept: minutes of the runs the mean is taken over.
        mean_minutes: mean of all that converged, also where there is no score.
        normalization: factor by which MLCommons scaled the published score (scaling.json), else 1.
    """

    minutes: float | None
    reason: str
    remarks: tuple[str, ...]
    runs: int
    converged: int
    kept: tuple[float, ...]
    mean_minutes: float | None
    normalization: float = 1.0

    @property
    def spread(self) -> float | None:
        """Standard deviation of the kept runs over their mean."""
        if len(self.kept) < 2:
            return None
        return statistics.stdev(self.kept) / statistics.fmean(self.kept)


def score_runs(
    logs: Sequence[RunLog],
    benchmark: Benchmark,
    round_name: str,
    *,
    unreadable: int = 0,
    normalization: float = 1.0,
) -> Score:
    """Scores the runs of one benchmark on one system.

    The fastest and the slowest are dropped (of 3D U-Net four each), the rest averaged. A run that did
    not converge, or whose log ends early or cannot be read, counts as slower than any; more of them
    than are dropped, or too few runs, and there is no score. NCF: the first 50 that converge of 100,
    in order of their numbers. A resumed run has no time by the rules and counts for nothing, and so does
    one of ours that is unfinished: the same command will continue it.
    """
    left_out = {log.path: why for log in logs if (why := _left_out(log))}
    remarks = [f"{path.name} {why} and does not count" for path, why in left_out.items()]
    logs = sorted((log for log in logs if log.path not in left_out), key=lambda log: run_number(log.path))
    times = [_minutes(log, benchmark, round_name) for log in logs] + [math.inf] * unreadable
    finite = [time for time in times if time < math.inf]
    if unreadable:
        remarks.append(f"{unreadable} log(s) cannot be read and count as not converged")
    counted, reason = _countable(times, benchmark, round_name, remarks)
    kept = () if reason else without_ends(counted, benchmark.dropped)
    return Score(
        minutes=statistics.fmean(kept) if kept else None,
        reason=reason,
        remarks=tuple(remarks),
        runs=len(times),
        converged=len(finite),
        kept=kept,
        mean_minutes=statistics.fmean(finite) if finite else None,
        normalization=normalization,
    )


def without_ends(values: Iterable[float], dropped: int) -> tuple[float, ...]:
    """The values in order without the `dropped` least and the `dropped` greatest."""
    ordered = sorted(values)
    return tuple(ordered[dropped : len(ordered) - dropped])


def olympic_mean(values: Iterable[float], dropped: int) -> float:
    """The mean of `without_ends`, infinite where one of those is."""
    return statistics.fmean(without_ends(values, dropped))


def _minutes(log: RunLog, benchmark: Benchmark, round_name: str) -> float:
    """Minutes to train, infinite where the run did not converge."""
    return log.minutes if log.minutes is not None and reached(log, benchmark, round_name) else math.inf


def _left_out(log: RunLog) -> str:
    if log.resumed:
        return "was resumed"
    if log.clock:
        return log.clock
    return "is unfinished" if log.ours and log.minutes is None else ""


def _countable(
    times: list[float], benchmark: Benchmark, round_name: str, remarks: list[str]
) -> tuple[list[float], str]:
    """The times that the score is taken from, or why there is none."""
    required = benchmark.required_runs(round_name)
    converged = [time for time in times if time < math.inf]
    if benchmark.key == "ncf":
        if len(times) < NCF_RUNS:
            remarks.append(f"{len(times)} of {NCF_RUNS} runs are here")
        if len(converged) < required:
            return [], f"{len(converged)} of {len(times)} runs converged, the rules take {required}"
        return converged[:required], ""
    if len(times) < required:
        return [], f"{len(times)} of {required} runs"
    missed = len(times) - len(converged)
    if missed > benchmark.dropped:
        return [], f"{missed} of {len(times)} runs did not converge, the rules allow {benchmark.dropped}"
    if missed:
        remarks.append(f"{missed} of {len(times)} runs did not converge")
    if len(times) > required:
        remarks.append(f"{len(times)} runs, where the rules ask for {required}")
    return list(times), ""


def reached(log: RunLog, benchmark: Benchmark, round_name: str) -> bool:
    """Whether a run ended and reached its target.

    Where run_stop does not say (some logs of v0.5), the last figures are held against the goals that
    were logged or that the rules name; where these are unknown too, a run that ended counts as converged.
    What a log of ours calls a success must have reached its goals too.
    """
    if log.minutes is None:
        return False
    if log.converged is not None and not (log.converged and log.ours):
        return log.converged
    goals = goals_of(log, benchmark, round_name)
    return not log.evaluations or goals_reached(goals, figures(goals, log.evaluations[-1].found))


def goals_of(log: RunLog, benchmark: Benchmark, round_name: str) -> tuple[Goal, ...]:
    """What a run had to reach, in the unit of its log; nothing where that is not known."""
    return find_goals(log, benchmark, round_name, [evaluation.found for evaluation in log.evaluations])


def run_number(path: Path) -> tuple[list[int], str]:
    """What runs are ordered by: the numbers in the file's name."""
    return [int(digits) for digits in re.findall(r"\d+", path.name)], path.name


def winners(minutes: Sequence[float | None], variance: float) -> list[int]:
    """Indices of the fastest scores: more than one where the next lies within the known variance."""
    known = [m for m in minutes if m is not None]
    if not known:
        return []
    limit = min(known) * (1 + variance)
    return [i for i, m in enumerate(minutes) if m is not None and m <= limit]
