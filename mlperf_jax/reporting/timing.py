"""Where the time of a training run went, as far as its log tells."""

from __future__ import annotations

import dataclasses

from mlperf_jax.rounds.objects import number
from mlperf_jax.rounds.training_logs import RunLog

PHASES = ("init", "compile", "train", "evaluate", "input_wait")


@dataclasses.dataclass(frozen=True)
class TimeSplit:
    """Minutes by phase; None is what the log does not hold. `init` is without compilation, `train`
    without evaluation and waiting for input."""

    init: float | None
    compile: float | None
    train: float | None
    evaluate: float | None
    input_wait: float | None


def split_time(log: RunLog) -> TimeSplit:
    """Splits a run by its events: init_start to init_stop, run_start to run_stop, eval_start to eval_stop."""
    begin, end = log.first("init_start"), log.first("init_stop") or log.first("run_start")
    compiling = log.first("compile_time")
    compile_minutes = None
    if compiling is not None and (seconds := number(compiling.value)) is not None:
        compile_minutes = max(seconds, 0.0) / 60
    init = None
    if begin is not None and end is not None and end.time_ms >= begin.time_ms:
        init = max((end.time_ms - begin.time_ms) / 60_000 - (compile_minutes or 0.0), 0.0)
    evaluate = _evaluation_minutes(log)
    waiting = None if log.throughput.input_wait is None else log.throughput.input_wait / 60
    train = None
    if log.minutes is not None:
        train = max(log.minutes - (evaluate or 0.0) - (waiting or 0.0), 0.0)
    return TimeSplit(init, compile_minutes, train, evaluate, waiting)


def _evaluation_minutes(log: RunLog) -> float | None:
    """Sum over evaluations within the run; None where the log does not say when they began.

    From where training goes on beside an evaluation, the time is training's.
    """
    if log.start_ms is None or log.minutes is None:
        return None
    stop = log.start_ms + log.minutes * 60_000
    total, began, seen = 0.0, None, False
    for event in log.events:
        if event.key == "eval_start":
            began = event.time_ms
        elif event.key in ("eval_stop", "block_start") and began is not None:
            seen = True
            total += max(min(event.time_ms, stop) - began, 0.0)
            began = None
    return total / 60_000 if seen else None
