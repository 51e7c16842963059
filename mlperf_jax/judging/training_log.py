"""Judges one training log by what the rules say and the official checkers do not look at.

Here its times, evaluations and quality; `training_counts` has its samples and the numbers that it logs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlperf_jax.goals import Goal, reached
from mlperf_jax.judging.findings import ERROR, WARNING, Finding, warning
from mlperf_jax.results.own_runs import run_folder
from mlperf_jax.rounds import evaluation_schedule
from mlperf_jax.rounds.log_lines import Event
from mlperf_jax.rounds.objects import number, read_object
from mlperf_jax.rounds.qualities import EVALS, evaluations, figures, find_goals, in_unit, target_event
from mlperf_jax.rounds.training_rules import Benchmark

# Between processes that write one log.
_CLOCK_SLACK_MS = 1000
_MOST_OF_A_KIND = 10  # findings told one by one
# Evaluated after the run, from its checkpoints.
_EVALUATED_LATER = ("minigo", "stable_diffusion")
# (begin, end): intervals that may not end before they begin.
_INTERVALS = (
    ("init_start", "init_stop"),
    ("run_start", "run_stop"),
    ("epoch_start", "epoch_stop"),
    ("block_start", "block_stop"),
    ("eval_start", "eval_stop"),
)
EPOCHS_AHEAD = {"dlrm": 1}  # its evaluations are called 1.05, 1.10 and so on
_MOST_EPOCHS = 20_000  # what is logged as more than this counts samples, as 3D U-Net does under either name
_SHARE = 0.03  # of the interval between two evaluations: what one may be off
# What the official rcp_checker takes a whole line for as soon as it holds one of these words.
_RCP_WORDS = ("eval_accuracy", "eval_error", "global_batch_size", "submission_benchmark", "train_samples")


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a log is judged with.

    Attributes:
        path: the log.
        events: all of it, in order.
        benchmark, round_name: whose rules hold; "local" for runs of our own.
        closed: whether the result claims to be of the closed division.
        own: of a run of ours, its config, status and so on by file; empty for anybody else's.
    """

    path: Path
    events: Sequence[Event]
    benchmark: Benchmark
    round_name: str
    closed: bool
    own: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def all(self, *keys: str) -> list[Event]:
        return [event for event in self.events if event.key in keys]

    def first(self, key: str) -> Event | None:
        return next((event for event in self.events if event.key == key), None)

    def number(self, key: str) -> float | None:
        event = self.first(key)
        return None if event is None else number(event.value)

    def finding(self, event: Event | None, rule: str, text: str, mend: str, severity: str = ERROR) -> Finding:
        return Finding(self.path, rule, text, mend, severity, event.line if event else None)

    @property
    def ours(self) -> bool:
        """Whether this project wrote the log."""
        return bool(self.own) or self.first("run_labels") is not None

    @property
    def strict(self) -> str:
        """Severity of what only a closed result may not have."""
        return ERROR if self.closed else WARNING


def judge(log: Judged) -> Iterator[Finding]:
    """All findings on one log's times, evaluations and quality."""
    yield from _clock(log)
    yield from _evaluations(log)
    yield from _quality(log)
    yield from _resumed(log)
    yield from _compilation(log)
    yield from _words(log)


def read_own(path: Path) -> dict[str, dict[str, Any]]:
    """config.json, status.json and so on of a run of ours, by file; empty for anybody else's."""
    folder = run_folder(path)
    if folder is None:
        return {}
    return {name: read_object(folder / f"{name}.json") for name in ("config", "status", "devices")}


def _clock(log: Judged) -> Iterator[Finding]:
    mend = "Run again: a time that runs backwards measures nothing."
    latest: Event | None = None
    later = log.benchmark.key in _EVALUATED_LATER
    count = 0
    for event in log.events:
        if later and event.key.startswith("eval_"):
            continue
        if latest and event.time_ms < latest.time_ms - _CLOCK_SLACK_MS:
            count += 1
            back = (latest.time_ms - event.time_ms) / 1e3
            text = f"{event.key} is {back:.1f} s before {latest.key} in line {latest.line}."
            if count <= _MOST_OF_A_KIND:
                yield log.finding(event, "time-backwards", text, mend)
        elif latest is None or event.time_ms > latest.time_ms:
            latest = event
    if count > _MOST_OF_A_KIND:
        yield log.finding(
            None, "time-backwards", f"{count} events of this log are before earlier lines.", mend
        )
    for begin_key, end_key in _INTERVALS:
        begin: Event | None = None
        for event in log.all(begin_key, end_key):
            if event.key == begin_key:
                begin = event
            elif begin and event.time_ms < begin.time_ms:
                text = f"{end_key} is {begin.time_ms - event.time_ms:g} ms before {begin_key} in line {begin.line}."
                yield log.finding(event, "time-backwards", text, mend)
    stop = log.first("run_stop")
    if stop and not later:
        for event in log.all(*EVALS):
            if event.time_ms > stop.time_ms:
                text = f"{event.key} is later than run_stop in line {stop.line}."
                yield log.finding(
                    event, "evaluated-after-stop", text, "Stop the clock after the last evaluation."
                )


def _done(event: Event) -> float | None:
    """Samples or epochs trained on at an evaluation, as logged."""
    found = (number(event.metadata.get(key)) for key in ("samples_count", "epoch_num"))
    return next((n for n in found if n is not None), None)


def _evaluations(log: Judged) -> Iterator[Finding]:
    batch = int(log.number("global_batch_size") or 0)
    wanted = _own_schedule(log) or (
        evaluation_schedule.find_schedule(log.benchmark.key, log.round_name, batch) if log.closed else None
    )
    evaluations = [(event, at) for event in log.all(*EVALS) if (at := _done(event)) is not None]
    if wanted is None or not evaluations:
        return
    done = [at for _, at in evaluations]
    train = log.number("train_samples") or 0
    by_samples = log.ours and "samples_count" in evaluations[0][0].metadata
    if wanted.unit == "epoch" and train and (by_samples or done[0] > _MOST_EPOCHS):
        done = [samples / train for samples in done]
    # Several metrics or processes may log one evaluation each.
    kept = [i for i, at in enumerate(done) if i == 0 or at != done[i - 1]]
    step = batch * wanted.per_sample if wanted.unit == "samples" else batch / train if train else 0.0
    slack = 1.5 * step + _SHARE * wanted.interval
    for i, text in evaluation_schedule.breaches(wanted, [done[i] for i in kept], slack):
        mend = "Evaluate as the rules say, neither more nor less often."
        yield log.finding(evaluations[kept[i]][0], "evaluation-schedule", f"{text}.", mend)


def _own_schedule(log: Judged) -> evaluation_schedule.Every | None:
    """What the config of a mini run of ours says; a closed one goes by the rules."""
    config = log.own.get("config", {}).get("config")
    if log.closed or not isinstance(config, dict):
        return None
    every, first = number(config.get("eval_every_epochs")), number(config.get("eval_offset_epochs"))
    if per_epoch := number(config.get("evals_per_epoch")):
        every, first = 1 / per_epoch, 1 / per_epoch + EPOCHS_AHEAD.get(log.benchmark.key, 0)
    if not every:
        return None
    return evaluation_schedule.Every(
        every, f"every {every:g} epochs (the run's config)", (first, first) if first else None
    )


def _quality(log: Judged) -> Iterator[Finding]:
    """Whether the run ended, and reached the target as it says; and of a closed run, whether that is the rules'.

    Of resnet, target 0.759: run_stop says success after qualities 0.70, 0.75 are "under-target" (the best
    misses it), and so are 0.70, 0.76, 0.75 (the run went on past its target); aborted is "not-converged",
    a warning. quality_target 0.70 in a closed log is "target".
    """
    stop = log.first("run_stop")
    if stop is None:
        mend = "Let the run end; the same command continues it."
        yield log.finding(None, "unfinished", "the log has no run_stop: the run has no end.", mend)
        return
    status = str(stop.metadata.get("status", "")).lower()
    if status == "success":
        yield from _reached(log, stop)
    else:
        text = f"the run missed its target (run_stop says {status or 'nothing'}) and counts as slower than any other."
        yield log.finding(
            stop, "not-converged", text, "The rules allow one such run (3D U-Net four).", WARNING
        )
    yield from _own_target(log)


def _reached(log: Judged, stop: Event) -> Iterator[Finding]:
    """Whether the best evaluation, and the last, are as good as a run_stop of success says."""
    told, events = evaluations(log.events), log.all(*EVALS)
    later = log.benchmark.key in _EVALUATED_LATER
    found = [one.found for one in told]
    goals = find_goals(
        log, log.benchmark, log.round_name, found, by_rules=(log.closed or log.ours) and not later
    )
    if not goals or not events:
        return
    evaluated = [figures(goals, one) for one in found]
    if not any(reached(goals, one) for one in evaluated):
        best = {goal.name: goal.best(one[goal.name] for one in evaluated) for goal in goals}
        text = f"run_stop says success, and the best {_against(goals, best)}."
        mend = "Train to the target, or let the run count as aborted."
        yield log.finding(stop, "under-target", text, mend)
    elif not later:
        last = evaluated[-1] if number(events[-1].value) is not None else figures(goals, None)
        if not reached(goals, last):
            text = f"run_stop says success, and the last {_against(goals, last)}."
            yield log.finding(stop, "under-target", text, "Stop at the evaluation that reaches the target.")


def _against(goals: Sequence[Goal], found: Mapping[str, float]) -> str:
    """Figures and their targets, in words."""
    if len(goals) == 1:
        return f"quality is {found[goals[0].name]:g} where {goals[0].target:g} is the target"
    each = ", ".join(f"{goal.name} {found[goal.name]:g} of {goal.target:g}" for goal in goals)
    return f"figures are {each}, to be reached by one evaluation"


def _own_target(log: Judged) -> Iterator[Finding]:
    """Whether a closed run's own target asks for less than the rules do."""
    event, rules = target_event(log), log.benchmark.goals(log.round_name)
    if not log.closed or event is None or not rules:
        return
    rules = rules if isinstance(event.value, dict) else rules[:1]
    for rule, mine in zip(rules, figures(rules, event.value).values(), strict=True):
        wanted = in_unit(rule, [mine])
        slack = 0.0 if rule.direction.falls else 1e-9
        if dataclasses.replace(wanted, target=wanted.target * (1 - slack)).reached(mine):
            continue
        text = f"the run's own target is {mine:g}; closed runs have {wanted.target:g}."
        yield log.finding(event, "target", text, "Train to the rules' target, or submit to open.")


def _resumed(log: Judged) -> Iterator[Finding]:
    if event := log.first("resumed"):
        text = "the run was stopped and resumed: by the rules it has no time, and counts for nothing."
        yield log.finding(event, "resumed", text, "Make another run without a stop.", log.strict)


def _compilation(log: Judged) -> Iterator[Finding]:
    """Compilation belongs between init_start and run_start, where half an hour of it is free."""
    event = log.first("compile_time")
    begin, start = log.first("init_start"), log.first("run_start")
    seconds = log.number("compile_time")
    if event is None or seconds is None:
        if log.ours and start is not None:
            mend = "Log compile_time before run_start."
            text = "nothing says how long compilation took, nor whether the clock ran."
            yield log.finding(start, "compile-time", text, mend, WARNING)
        return
    if start and event.line > start.line:
        text = f"{seconds:.1f} s of compilation are logged after run_start in line {start.line}: inside the clock."
        yield log.finding(
            event, "compile-time", text, "Compile before run_start; up to 30 minutes do not count."
        )
    elif begin and seconds * 1e3 > event.time_ms - begin.time_ms + _CLOCK_SLACK_MS:
        spent = (event.time_ms - begin.time_ms) / 1e3
        text = (
            f"{seconds:.1f} s of compilation are claimed and only {spent:.1f} s have passed since init_start."
        )
        yield log.finding(event, "compile-time", text, "Log the time that compilation took.")
    stop = log.first("init_stop")
    if stop and start and start.time_ms - stop.time_ms > _CLOCK_SLACK_MS:
        gap = (start.time_ms - stop.time_ms) / 1e3
        text = f"{gap:.1f} s between init_stop and run_start belong to neither."
        yield log.finding(
            start, "compile-time", text, "Start the clock where initialization ends.", log.strict
        )


def _words(log: Judged) -> Iterator[Finding]:
    """Lines that the official rcp_checker would mistake for another event."""
    for event in log.events:
        said = f"{event.key} {event.value} {event.metadata}"
        word = next((w for w in _RCP_WORDS if w in said and not event.key.startswith(w)), None)
        if word and log.ours:
            text = f"the official rcp_checker takes {event.key} for {word}, whose name it holds."
            yield log.finding(
                event, "official-rcp-words", text, f"Log it without the word {word}.", log.strict
            )


def unreadable(path: Path, why: str) -> Finding:
    return Finding(path, "unreadable", why, "Restore the log, or leave it out.")


def damaged(path: Path, lines: Sequence[int]) -> Iterator[Finding]:
    """Lines that claim to be events and are none."""
    for line in lines[:20]:
        yield Finding(
            path, "damaged-line", "claims to be an MLPerf event and is none.", "Restore the line.", line=line
        )
    if len(lines) > 20:
        yield warning(path, "damaged-line", f"{len(lines) - 20} more such lines.", "Restore the log.")
