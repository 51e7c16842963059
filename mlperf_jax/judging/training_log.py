"""Judges one training log by what the rules say and the official checkers do not look at.

Here its times, evaluations and quality; `training_counts` has its samples and the numbers that it logs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlperf_jax.goals import Goal, reached
from mlperf_jax.judging.clock import out_of_order
from mlperf_jax.judging.findings import ERROR, WARNING, Finding, warning
from mlperf_jax.results.own_runs import run_folder
from mlperf_jax.rounds import evaluation_schedule
from mlperf_jax.rounds.log_lines import Event
from mlperf_jax.rounds.objects import number, read_object
from mlperf_jax.rounds.qualities import EVALS, evaluations, figures, find_goals, in_unit, target_event
from mlperf_jax.rounds.training_rules import Benchmark

# Between processes that write one log.
_CLOCK_SLACK_MS = 1000
_NO_DATE_MS = 4e12  # the year 2096
_MOST_OF_A_KIND = 3  # events out of order that are told one by one
_BACKWARDS = "Run again: a time that runs backwards measures nothing."
# Evaluated after the run, from its checkpoints.
_EVALUATED_LATER = ("minigo", "stable_diffusion")
_OFFLINE = "bert"  # "The evaluation can be either offline or online" (its README)
# (begin, end): intervals that may not end before they begin.
_INTERVALS = (
    ("init_start", "init_stop"),
    ("run_start", "run_stop"),
    ("epoch_start", "epoch_stop"),
    ("block_start", "block_stop"),
    ("eval_start", "eval_stop"),
)
_TIMED = {key for interval in _INTERVALS for key in interval} | set(EVALS) | {"compile_time"}
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

    @functools.cached_property
    def _firsts(self) -> dict[str, Event]:
        return {event.key: event for event in reversed(self.events)}

    def first(self, key: str) -> Event | None:
        return self._firsts.get(key)

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
    """Times that run backwards, and evaluations after the end.

    Others' hyperparameters and names may be logged whenever that suits: nothing hangs on their times.
    """
    timed = [e for e in log.events if log.ours or e.key in _TIMED or e.time_ms > _NO_DATE_MS]
    # Begun by every process, when each got there.
    timed = [e for e in timed if log.ours or e.key != "init_start" or e is log.first("init_start")]
    later = log.benchmark.key in _EVALUATED_LATER
    apart: list[Event] = []
    if later or log.benchmark.key == _OFFLINE:
        # "update the clock stopped time to the timestamp of the first passing checkpoint" (training_rules.adoc)
        of_evaluation = [event.key.startswith("eval_") or event.key == "run_stop" for event in timed]
        apart = list(itertools.compress(timed, of_evaluation)) if not later else []
        timed = [event for event, of in zip(timed, of_evaluation, strict=True) if not of]
    told = [*out_of_order(timed, _CLOCK_SLACK_MS), *out_of_order(apart, _CLOCK_SLACK_MS)]
    more = f"; so are {len(told) - 1} other events out of order" if len(told) > _MOST_OF_A_KIND else ""
    for event, text in told[: 1 if more else None]:
        yield log.finding(event, "time-backwards", f"{text}{more}.", _BACKWARDS)
    lines = {event.line for event, _ in told}
    for begin_key, end_key in _INTERVALS:
        begin: Event | None = None
        for event in log.all(begin_key, end_key):
            if event.key == begin_key:
                begin = event
            elif begin and event.time_ms < begin.time_ms and not lines & {begin.line, event.line}:
                text = f"{end_key} is {begin.time_ms - event.time_ms:g} ms before {begin_key} in line {begin.line}."
                yield log.finding(event, "time-backwards", text, _BACKWARDS)
    stop = log.first("run_stop")
    slack = 0 if log.ours else _CLOCK_SLACK_MS
    if stop and not later:
        for event in log.all(*EVALS):
            if event.time_ms > stop.time_ms + slack and event.line not in lines:
                text = f"{event.key} is later than run_stop in line {stop.line}."
                yield log.finding(
                    event, "evaluated-after-stop", text, "Stop the clock after the last evaluation."
                )


def _done(event: Event) -> float | None:
    """Samples or epochs trained on at an evaluation, as logged."""
    found = (number(event.metadata.get(key)) for key in ("samples_count", "epoch_num"))
    return next((n for n in found if n is not None), None)


def _evaluations(log: Judged) -> Iterator[Finding]:
    """Evaluations that are not where the rules have them."""
    batch = int(log.number("global_batch_size") or 0)
    own = _own_schedule(log)
    wanted: Sequence[evaluation_schedule.Schedule] = (own,) if own else ()
    if not own and log.closed:
        wanted = evaluation_schedule.find_schedules(log.benchmark.key, log.round_name, batch)
    evaluated = _evaluated(log)
    if not wanted or not evaluated:
        return
    done = [at for _, at in evaluated]
    train = log.number("train_samples") or 0
    unit, per_sample = wanted[0].unit, wanted[0].per_sample
    by_samples = log.ours and "samples_count" in evaluated[0][0].metadata
    if unit == "epoch" and train and (by_samples or done[0] > _MOST_EPOCHS):
        done = [samples / train for samples in done]
    elif unit == "epoch":
        # Where parts of an epoch are evaluated, 1, 2, 3 and so on are the evaluations' own numbers.
        counted = wanted[0].interval < 1 and done == list(range(1, len(done) + 1))
        done = [] if counted else _epochs_done(log, done)
    elif len(set(done)) == 1 and done[0] < batch * per_sample:
        done = _spread(log, evaluated, math.ceil(wanted[0].interval / batch) * batch)
    # Several metrics or processes may log one evaluation each; before the first step anybody may evaluate.
    kept = [i for i, at in enumerate(done) if at > 0 and (i == 0 or at != done[i - 1])]
    step = batch * per_sample if unit == "samples" else batch / train if train else 0.0
    found = evaluation_schedule.breaches(
        wanted, [done[i] for i in kept], lambda schedule: 1.5 * step + _SHARE * schedule.interval, step
    )
    for i, text in found:
        mend = "Evaluate as the rules say, neither more nor less often."
        yield log.finding(evaluated[kept[i]][0], "evaluation-schedule", f"{text}.", mend)


def _evaluated(log: Judged) -> list[tuple[Event, float]]:
    """Every evaluation, and what was trained on at it as logged.

    Others may evaluate beside training and log each as it is ready: then in order of what was trained on, and with those
    that had begun and were not ready when the run stopped.
    """
    told, begun = _told(log, *EVALS), _told(log, "eval_start")
    in_order = all(before <= after for (_, before), (_, after) in itertools.pairwise(told))
    if in_order or log.ours or not {at for _, at in told} <= {at for _, at in begun}:
        return told
    last = max(at for _, at in told)
    return sorted([*told, *(one for one in begun if one[1] <= last)], key=lambda one: one[1])


def _told(log: Judged, *keys: str) -> list[tuple[Event, float]]:
    return [(event, at) for event in log.all(*keys) if (at := _done(event)) is not None]


def _epochs_done(log: Judged, numbers: list[float]) -> list[float]:
    """Epochs trained, of epoch numbers: those of a log that counts from 1 may name the epoch that comes next."""
    blocks = [
        (first, count)
        for event in log.all("block_start")
        if (first := number(event.metadata.get("first_epoch_num"))) is not None
        and (count := number(event.metadata.get("epoch_count"))) is not None
    ]
    ends = {first + count for first, count in blocks}
    # Evaluated after the first block of epochs 1 to 40, and called epoch 41.
    if (
        not log.ours
        and blocks
        and blocks[0][0] == 1
        and numbers[0] == sum(blocks[0])
        and ends.issuperset(numbers)
    ):
        return [at - 1 for at in numbers]
    return numbers


def _spread(log: Judged, evaluated: Sequence[tuple[Event, float]], interval: float) -> list[float]:
    """Samples trained at each evaluation of a log that calls all of them epoch 1, as if at equal distances.

    Returns:
        Nothing where the log does not say at its end how many samples were trained on, or where these make as many
        evaluations, but for one: training may go on past the last.
    """
    total = log.first("train_samples")
    samples = number(total.value) if total else None
    if total is None or samples is None or any(event.line > total.line for event, _ in evaluated):
        return []
    if abs(samples / interval - len(evaluated)) < 1.5:
        return []
    return [samples * (i + 1) / len(evaluated) for i in range(len(evaluated))]


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
    elif begin and event.time_ms >= begin.time_ms > event.time_ms + _CLOCK_SLACK_MS - seconds * 1e3:
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
