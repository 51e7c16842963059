"""Judges what a training log of ours says twice: in itself, in its run's folder, in TensorBoard's curves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mlperf_jax.judging.findings import Finding, plural
from mlperf_jax.judging.training_log import Judged
from mlperf_jax.results.curves import Point, read_evaluations
from mlperf_jax.results.own_runs import run_folder
from mlperf_jax.rounds.log_lines import Event
from mlperf_jax.rounds.objects import number
from mlperf_jax.rounds.qualities import EVALS, numbers
from mlperf_jax.rounds.training_logs import CLOCK_MOVED, clock_moved, outlasts

# What every run logs whose clock has started, and what besides where it ends as a success.
_ALWAYS = [
    "submission_benchmark",
    "submission_division",
    "submission_org",
    "submission_platform",
    "submission_status",
    "run_labels",
    "quality_target",
    "cache_clear",
    "seed",
    "global_batch_size",
    "gradient_accumulation_steps",
    "train_samples",
    "eval_samples",
    "init_start",
    "compile_time",
    "init_stop",
    "run_start",
]
_IN_SUCCESS = ["block_start", "tracked_stats", "block_stop", "eval_start", "eval_accuracy", "eval_stop"]
_SINGLE = 1e-6  # relative: figures of curves are of single precision
_AT_ONCE_MS = 2000  # within which an evaluation is logged and drawn
_MEND = "Restore the log as it was written."


def judge(log: Judged) -> Iterator[Finding]:
    """All findings on a log of ours; none on anybody else's."""
    if not log.ours:
        return
    yield from _missing(log)
    yield from _seconds(log)
    yield from _counts(log)
    yield from _ended(log)
    yield from _curves(log)


def _missing(log: Judged) -> Iterator[Finding]:
    stop = log.first("run_stop")
    if stop is None and log.first("run_start") is None:
        return  # stopped before its clock started
    wanted = [*_ALWAYS, *(_IN_SUCCESS if stop and stop.metadata.get("status") == "success" else ())]
    for key in wanted:
        if log.first(key) is None:
            text = f"{key} is not logged, which every run of ours logs."
            yield log.finding(None, "missing-key", text, _MEND)


def _seconds(log: Judged) -> Iterator[Finding]:
    """Seconds that a steady clock counted in every block, against the log's own times of it and of the run."""
    begin: Event | None = None
    moved, total, longer = 0.0, 0.0, []
    for event in log.all("run_start", "resumed", "block_start", "block_stop", "tracked_stats", CLOCK_MOVED):
        if event.key == CLOCK_MOVED:
            moved += number(event.value) or 0.0
            continue
        told = event.value.get("seconds") if isinstance(event.value, dict) else None
        if event.key == "tracked_stats" and begin and (seconds := number(told)) is not None:
            total += seconds
            passed = (event.time_ms - begin.time_ms) / 1e3 - moved
            if outlasts(seconds, passed):
                longer.append((event, seconds, passed))
        begin, moved = event, 0.0
    if longer:
        event, seconds, passed = longer[0]
        text = f"the block took {seconds:.2f} s, of which {passed:.2f} s are between its lines"
        others = f"; so it is in {plural(len(longer) - 1, 'other block')}" if len(longer) > 1 else ""
        yield log.finding(event, "time", f"{text}{others}.", _MEND)
    start, stop = log.first("run_start"), log.first("run_stop")
    if start and stop:
        passed = (stop.time_ms - start.time_ms) / 1e3 - clock_moved(log.events, stop.line)
        if outlasts(total, passed):
            text = f"the blocks took {total:.2f} s, and the run {passed:.2f} s from run_start to run_stop."
            yield log.finding(stop, "time", text, _MEND)


def _counts(log: Judged) -> Iterator[Finding]:
    """Logged numbers against what the run was made with."""
    config = log.own.get("config", {}).get("config")
    status = log.own.get("status", {})
    wanted: dict[str, tuple[Any, str]] = {}
    if isinstance(config, dict):
        for key, name in (
            ("global_batch_size", "batch_size"),
            ("gradient_accumulation_steps", "gradient_accumulation_steps"),
            ("quality_target", "target"),
        ):
            wanted[key] = (config.get(name), f"config.json has {name}")
        sizes = re.search(r"([\d,]+) train and ([\d,]+) eval", str(config.get("data_description", "")))
        if sizes:
            for key, digits in zip(("train_samples", "eval_samples"), sizes.groups(), strict=True):
                wanted[key] = (digits.replace(",", ""), "the data of config.json has")
    if "seed" in status:
        wanted["seed"] = (status["seed"], "status.json has seed")
    if (
        log.own
        and (platform := log.first("submission_platform"))
        and platform.value != log.path.parents[1].name
    ):
        text = f"the log is of {platform.value}, and lies among those of {log.path.parents[1].name}."
        yield log.finding(platform, "count", text, "Put the log where its system's are.")
    for key, (value, words) in wanted.items():
        event, want = log.first(key), list(numbers(value).values())
        if not want or (event and _among(event.value, want)):
            continue
        had = f"{words} {', '.join(f'{n:,.10g}' for n in want)}"
        text = (
            f"{key} is logged as {event.value}, and {had}." if event else f"{key} is not logged, and {had}."
        )
        yield log.finding(event, "count", text, "Log what the run had.")


def _ended(log: Judged) -> Iterator[Finding]:
    """How the run ended, against its status."""
    status, stop = log.own.get("status", {}), log.first("run_stop")
    if stop is None or status.get("state") not in ("success", "aborted"):
        return
    for name, told in (("status", status["state"]), ("step", status.get("step"))):
        said = stop.metadata.get(name)
        if told is not None and (name == "status" or said is not None) and said != told:
            text = f"run_stop says {said!r}, and status.json {told!r}."
            yield log.finding(stop, "count", text, "Restore the log.")
    evaluated = log.all(*EVALS)
    last = evaluated[-1] if evaluated else None
    found = numbers(last.value) if last else {}
    for name, figure in numbers(status.get("quality")).items():
        if name not in found or not math.isclose(found[name], figure, rel_tol=1e-9):
            text = f"{name} is {found.get(name, math.nan):.10g} at last, and status.json has {figure:.10g}."
            yield log.finding(last, "quality", text, _MEND)


def _curves(log: Judged) -> Iterator[Finding]:
    """Every evaluation against the point that was drawn of it at once."""
    folder, stop = run_folder(log.path), log.first("run_stop")
    points = read_evaluations(folder / "tensorboard") if folder and stop else []
    evaluated = log.all(*EVALS)
    if not points:
        return
    if len(points) != len(evaluated):
        if log.first("resumed") is None:
            text = f"{plural(len(evaluated), 'evaluation')} of the {len(points)} in TensorBoard's curves stand here."
            yield log.finding(stop, "quality", text, _MEND)
        return
    told = [(event, _apart(event, point)) for event, point in zip(evaluated, points, strict=True)]
    apart = [(event, *found) for event, found in told if found]
    if apart:
        event, rule, why = apart[0]
        more = f"; so it is in {plural(len(apart) - 1, 'other evaluation')}" if len(apart) > 1 else ""
        yield log.finding(event, rule, f"{why}{more}.", _MEND)


def _apart(event: Event, point: Point) -> tuple[str, str] | None:
    """The rule, and in words how far an evaluation and its point part; None where they do not."""
    for figure in numbers(event.value).values():
        if not any(
            math.isclose(figure, drawn, rel_tol=_SINGLE, abs_tol=1e-9) for drawn in point.figures.values()
        ):
            drawn = ", ".join(f"{name} {value:.7g}" for name, value in point.figures.items())
            return "quality", f"{event.key} is {figure:.7g}, and TensorBoard's curves have {drawn}"
    apart = (event.time_ms - point.time_ms) / 1e3
    if abs(event.time_ms - point.time_ms) > _AT_ONCE_MS:
        way = "before" if apart < 0 else "after"
        return "time", f"{event.key} is {abs(apart):.1f} s {way} TensorBoard's point of it"
    return None


def _among(told: Any, wanted: Sequence[float]) -> bool:
    """Whether a logged number, or each of several, is one that was wanted."""
    found = numbers(told).values()
    return bool(found) and all(n in wanted for n in found)
