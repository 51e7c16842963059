"""Judges one run of LoadGen by its own logs, whoever wrote them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.goals import Goal
from mlperf_jax.judging import accuracy_log, compliance
from mlperf_jax.judging.clock import out_of_order
from mlperf_jax.judging.findings import ERROR, WARNING, Finding, listed, made_up, one_line, plural
from mlperf_jax.regular import open_regular
from mlperf_jax.rounds import inference_rules as inference
from mlperf_jax.rounds.inference_logs import (
    BEGIN,
    DETAIL,
    SUMMARY,
    early_stopping,
    own_goals,
    own_reasons,
    own_record,
)
from mlperf_jax.rounds.log_lines import Event, read_events
from mlperf_jax.rounds.objects import number
from mlperf_jax.rounds.qualities import figures

_CLOCK_SLACK_MS = 1000
_SAMPLES_APART = 2  # of the same model's answers, that rounding may make right or wrong
_ACCURACY, _PERFORMANCE = "AccuracyOnly", "PerformanceOnly"
_PEAK = "FindPeakPerformance"
# "Samples per second: 12.3" of a summary -> the field that says the same.
_SUMMARY = {
    "Samples per second": "result_samples_per_second",
    "Completed samples per second": "result_completed_samples_per_sec",
    "Tokens per second": "result_tokens_per_second",
    "Completed tokens per second": "result_completed_tokens_per_second",
    "99.00 percentile latency (ns)": "result_99.00_percentile_latency_ns",
}
# What result.json has of an accuracy run that was judged.
_JUDGED = ("metric", "quality", "quality_target", "accuracy_log_sha256")
_EARLY = ("Server", "SingleStream", "MultiStream")


@dataclasses.dataclass
class LoadGenRun:
    """One folder with mlperf_log_detail.txt.

    Attributes:
        fields: key -> the first event of it, as the official checker takes them.
        events: all, in order.
        damaged: numbers of lines that are no events.
        own: result.json of a run of ours, else empty.
    """

    folder: Path
    fields: dict[str, Event]
    events: list[Event]
    damaged: list[int]
    own: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / DETAIL

    @property
    def scenario(self) -> str:
        return str(self.value("effective_scenario"))

    @property
    def mode(self) -> str:
        return str(self.value("effective_test_mode"))

    @property
    def values(self) -> dict[str, Any]:
        return {key: event.value for key, event in self.fields.items()}

    def value(self, key: str) -> Any:
        return self.fields[key].value if key in self.fields else None

    def number(self, key: str) -> float | None:
        return number(self.value(key))

    def finding(self, key: str, rule: str, text: str, mend: str, severity: str = ERROR) -> Finding:
        """A finding at the line of `key`."""
        line = self.fields[key].line if key in self.fields else None
        return Finding(self.path, rule, text, mend, severity, line)


def read_loadgen_run(folder: Path) -> LoadGenRun:
    """Reads a run.

    Raises:
        UserError: its detail log cannot be read, or holds more than one run.
    """
    events, damaged = read_events(folder / DETAIL)
    begins = [event.line for event in events if event.key == BEGIN]
    if len(begins) > 1:
        raise UserError(f"{folder / DETAIL} holds two runs in one file (another begins in line {begins[1]}).")
    fields: dict[str, Event] = {}
    for event in events:
        fields.setdefault(event.key, event)
    return LoadGenRun(folder, fields, events, damaged, own_record(folder))


def judge_run(
    run: LoadGenRun, *, submitted: bool, closed: bool, official: tuple[int, ...] | None
) -> Iterator[Finding]:
    """Everything that one run's folder tells.

    Args:
        submitted: whether it lies in a submission, where more is asked than of runs at home.
        closed: whether that is of the closed division.
        official: seeds of its round; None where they are not known.
    """
    for line in run.damaged[:20]:
        yield Finding(
            run.path, "damaged-line", "claims to be a LoadGen event and is none.", "Restore it.", line=line
        )
    if run.scenario not in inference.SCENARIOS:
        yield Finding(
            run.path, "damaged-log", f"names no scenario ({one_line(run.scenario)}).", "Run it again."
        )
        return
    yield from _errors(run)
    if run.mode == _PEAK:
        return  # a search: its result is a rate to measure at
    yield from _clock(run)
    if run.mode == _ACCURACY:
        yield from _answers(run, submitted)
    else:
        yield from _validity(run)
        yield from _performance_settings(run, ERROR if submitted else WARNING)
        yield from _summary(run)
    yield from _seeds(run, official, ERROR if submitted else WARNING)
    yield from _own_record(run, closed)


def _errors(run: LoadGenRun) -> Iterator[Finding]:
    for event in run.events:
        if event.metadata.get("is_error"):
            text = f"LoadGen logged an error: {event.key} {one_line(event.value)}"
            mend = "Find its cause and run again; the official checker may let it pass, the rules do not."
            yield Finding(run.path, "loadgen-error", text, mend, line=event.line)
    told = run.number("num_errors")
    seen = sum(bool(event.metadata.get("is_error")) for event in run.events)
    if told and not seen:
        text = f"num_errors is {told:g}, and no line is marked as one."
        yield run.finding("num_errors", "loadgen-error", text, "Restore the log, or run again.")


def _clock(run: LoadGenRun) -> Iterator[Finding]:
    told = list(out_of_order(run.events, _CLOCK_SLACK_MS))
    others = f"; so are {len(told) - 1} other events out of order" if len(told) > 1 else ""
    for event, text in told[:1]:
        yield Finding(run.path, "time-backwards", f"{text}{others}.", "Run again.", line=event.line)
    named = [
        (m, e)
        for key, e in run.fields.items()
        if (m := re.fullmatch(r"result_(\d\d\.\d\d)_percentile_latency_ns", key))
    ]
    ordered = sorted((float(m[1]), number(e.value) or 0.0, e) for m, e in named)
    for (_, less, _), (share, more, event) in zip(ordered, ordered[1:], strict=False):
        if more < less or less < 0:
            text = f"percentile {share:g} is {more:g} ns, and a lower one {less:g} ns."
            yield Finding(run.path, "time-backwards", text, "Run again.", line=event.line)


def _validity(run: LoadGenRun) -> Iterator[Finding]:
    if "result_validity" not in run.fields:
        text = "the log has no result: the run has not ended."
        yield run.finding("result_validity", "invalid", text, "Let it end, or run again.")
    elif run.value("result_validity") != "VALID":
        why = own_reasons(run.own) or one_line(
            run.value("result_invalid_reason") or "LoadGen does not say why"
        )
        text = f"the result is {run.value('result_validity')}: {why}"
        yield run.finding("result_validity", "invalid", text, "Measure again as LoadGen recommends.")
    if run.scenario in _EARLY and run.value("early_stopping_met") is False:
        text = f"early stopping is not satisfied: {one_line(early_stopping(run.values))}"
        yield run.finding("early_stopping_met", "early-stopping", text, "Measure longer, or at a lower rate.")
    least, span = run.number("effective_min_duration_ms"), run.events[-1].time_ms
    if least and span < least and run.value("result_min_duration_met"):
        text = f"the log spans {span / 1e3:.1f} s, and says that {least / 1e3:g} s were met."
        yield run.finding("result_min_duration_met", "duration", text, "Run again.")
    count, issued = run.number("result_query_count"), run.number("generated_query_count")
    if run.scenario == "Server" and count is not None and issued is not None and count != issued:
        text = f"{issued:,.0f} queries were generated, and the result is of {count:,.0f}."
        yield run.finding(
            "result_query_count", "samples", text, "Run again: every query has to be answered once."
        )


def _performance_settings(run: LoadGenRun, severity: str) -> Iterator[Finding]:
    least = run.number("effective_min_duration_ms")
    if least is None or least < inference.MIN_DURATION_MS:
        text = f"effective_min_duration_ms is {least or 0:g}: a submission measures for {inference.MIN_DURATION_MS:,}."
        yield run.finding("effective_min_duration_ms", "duration", text, "Measure with --time=600.", severity)


def _seeds(run: LoadGenRun, official: tuple[int, ...] | None, severity: str) -> Iterator[Finding]:
    if official is None:
        return
    for name, wanted in zip(inference.SEEDS, official, strict=True):
        told = run.value(f"effective_{name}")
        if told != wanted:
            text = f"{name} is {told}, and the round's is {wanted}."
            yield run.finding(f"effective_{name}", "seed", text, "Run with the official seeds.", severity)


def _answers(run: LoadGenRun, submitted: bool) -> Iterator[Finding]:
    """Whether every sample was answered, once."""
    path = run.folder / accuracy_log.NAME
    if not path.is_file():
        yield Finding(path, "samples", "the accuracy run has no accuracy log.", "Run --mode=accuracy again.")
        return
    expected = run.number("effective_accuracy_sample_count") or run.number("qsl_reported_total_count")
    if accuracy_log.is_cut(path):
        if not submitted:
            text = "only the ends of the log are left, so that nobody can judge it."
            yield Finding(path, "samples", text, "Keep the whole log beside the submission.")
        return
    try:
        answers = accuracy_log.read_answers(path)
    except UserError as error:
        yield Finding(path, "damaged-log", str(error), "Run --mode=accuracy again.")
        return
    mend = "Run --mode=accuracy again: every sample has to be answered once."
    if answers.twice:
        text = f"{plural(len(answers.twice), 'sample')} answered more than once: {listed(answers.twice)}."
        yield Finding(path, "samples", text, mend, line=_line_of(path, answers.twice[0]))
    if answers.repeated:
        text = f"{plural(len(answers.repeated), 'seq_id')} stand there more than once: {listed(answers.repeated)}."
        yield Finding(path, "samples", text, mend)
    if expected is not None and len(answers.data) != expected:
        lost = [i for i in range(int(expected)) if i not in answers.data] if expected < 10**8 else []
        text = f"{len(answers.data):,} of {expected:,.0f} samples are answered; lost: {listed(lost)}."
        yield Finding(path, "samples", text, mend)
    outside = [sample for sample in answers.data if expected is not None and not 0 <= sample < expected]
    if outside:
        text = f"{plural(len(outside), 'sample')} that the data set has not: {listed(outside)}."
        yield Finding(path, "samples", text, mend)
    empty = [sample for sample, data in answers.data.items() if not data]
    if empty:
        yield Finding(
            path, "samples", f"{plural(len(empty), 'sample')} without an answer: {listed(empty)}.", mend
        )


def _line_of(path: Path, sample: int) -> int | None:
    """Where a sample is answered for the second time."""
    pattern = re.compile(rb'"qsl_idx"\s*:\s*%d\b' % sample)
    seen = 0
    with open_regular(path) as file:
        for number_of, line in enumerate(file, 1):
            seen += len(pattern.findall(line))
            if seen > 1:
                return number_of
    return None


def _summary(run: LoadGenRun) -> Iterator[Finding]:
    """What people read must be what is judged."""
    path = run.folder / SUMMARY
    try:
        with open_regular(path) as file:
            lines = file.read(1 << 20).decode("utf-8", "replace").splitlines()
    except OSError:
        yield Finding(path, "missing-file", "the run has no summary.", "Restore it, or run again.")
        return
    for line_number, line in enumerate(lines, 1):
        name, _, said = (part.strip() for part in line.partition(":"))
        if name == "Result is" and said != run.value("result_validity"):
            text = f"the summary says {said}, and the detail log {run.value('result_validity')}."
            yield Finding(path, "logs-differ", text, "Restore the logs, or run again.", line=line_number)
        elif name in _SUMMARY and (told := number(said)) is not None:
            logged = run.number(_SUMMARY[name])
            if logged is not None and abs(told - logged) > 1e-4 * abs(logged) + 0.01:
                text = f"the summary says {name} {told:g}, and the detail log {logged:g}."
                yield Finding(path, "logs-differ", text, "Restore the logs, or run again.", line=line_number)


def _own_record(run: LoadGenRun, closed: bool) -> Iterator[Finding]:
    """What our runs say besides LoadGen's logs."""
    path = run.folder / "result.json"
    if not run.own:
        return
    judged = run.mode == _ACCURACY and run.own.get("valid") is True
    for key in _JUDGED if judged else ():
        if key not in run.own:
            text = f"{key} is missing, which every accuracy run of ours says."
            yield Finding(path, "missing-key", text, "Run --mode=accuracy again.")
    if number(run.own.get("quality")) is not None:
        yield from _under_target(run, path)
        yield from _against_training(run, path, ERROR if closed else WARNING)
    told = run.own.get("accuracy_log_sha256")
    log = run.folder / accuracy_log.NAME
    if (
        isinstance(told, str)
        and log.is_file()
        and not accuracy_log.is_cut(log)
        and accuracy_log.digest(log) != told
    ):
        text = f"{accuracy_log.NAME} is not the log that was judged: its hash is another."
        yield Finding(path, "accuracy-hash", text, "Run --mode=accuracy again.")
    valid = run.own.get("valid")
    if (
        isinstance(valid, bool)
        and run.mode != _ACCURACY
        and valid != (run.value("result_validity") == "VALID")
    ):
        text = f"result.json says valid={valid}, and the detail log {run.value('result_validity')}."
        yield Finding(path, "logs-differ", text, "Run again.")
    if run.own.get("interrupted"):
        yield Finding(path, "interrupted", "the run was interrupted.", "Run again.")
    if run.own.get("profiled"):
        text = "the run was profiled, and its figures suffer from that."
        yield Finding(path, "profiled", text, "Measure without --profile.", ERROR if closed else WARNING)
    if closed:
        invented = made_up(run.own.get("labels"))
        if invented:
            text = f"a closed result of what says of itself: {listed(invented)}"
            yield Finding(path, "made-up-data", text, "Closed needs the benchmark's own data and model.")


def _under_target(run: LoadGenRun, path: Path) -> Iterator[Finding]:
    goals = own_goals(run.own)
    found = figures(goals, run.own["quality"])
    for goal in goals:
        if not goal.reached(found[goal.name]):
            name = goal.name if len(goals) > 1 else goal.metric
            where = "over" if goal.direction.falls else "under"
            text = f"{name} is {found[goal.name]:.6g}, {where} the target {goal.target:.6g}."
            yield Finding(path, "under-target", text, "Serve a model that is good enough.")


def _against_training(run: LoadGenRun, path: Path, severity: str) -> Iterator[Finding]:
    """A model is to be as good as trained; one that we trained answers what it was evaluated on, and no better."""
    own = re.search(r", step \d+$", str(run.own.get("model")))
    goals = own_goals(run.own)
    found, trained = figures(goals, run.own["quality"]), figures(goals, run.own.get("trained_quality"))
    for goal in goals:
        wanted = goal.share(trained[goal.name], 1 - compliance.QUALITY_SHARE)
        if own and better(goal, found[goal.name], trained[goal.name], run):
            text = f"{goal.metric} is {found[goal.name]:.6g}, and training reached {trained[goal.name]:.6g}."
            yield Finding(path, "quality", text, "Run --mode=accuracy again.")
        if not wanted.reached(goal.target) and not math.isnan(wanted.target):
            text = f"the target {goal.target:.6g} asks for less than 99 % of the {trained[goal.name]:.6g} of training."
            yield Finding(path, "target", text, "Hold the answers against what was trained.", severity)


def better(goal: Goal, figure: float, other: float, run: LoadGenRun) -> bool:
    """Whether a figure of a run is better than another of the same samples by more than precision and batches can do."""
    samples = (
        run.number("effective_accuracy_sample_count") or run.number("qsl_reported_total_count") or math.inf
    )
    scale = 100 if other > 1 else 1
    gained = other - figure if goal.direction.falls else figure - other
    return gained > compliance.QUALITY_SHARE * abs(other) + _SAMPLES_APART * scale / samples


def compare(performance: LoadGenRun, accuracy: LoadGenRun) -> Iterator[Finding]:
    """A performance run and the accuracy run beside it: they must be of one system."""
    for key in ("sut_name", "qsl_name", "qsl_reported_total_count", "effective_scenario"):
        one, other = performance.value(key), accuracy.value(key)
        if one != other:
            text = f"{key} is {one_line(other)}, and {one_line(one)} in the performance run."
            yield accuracy.finding(key, "runs-differ", text, "Run both with one command.")
    path = accuracy.folder / "result.json"
    if not (performance.own and accuracy.own):
        return
    for key in ("model", "trained_quality"):
        one, other = performance.own.get(key), accuracy.own.get(key)
        if one != other:
            text = f"{key} is {one_line(other)}, and {one_line(one)} in the performance run."
            yield Finding(path, "runs-differ", text, "Run both with one command.")


def compare_qualities(runs: Sequence[LoadGenRun]) -> Iterator[Finding]:
    """Accuracy runs of one model in several scenarios: the same samples, the same answers but for their batches."""
    goals = own_goals(runs[0].own)
    for goal in goals:
        found = [figures(goals, run.own.get("quality"))[goal.name] for run in runs]
        for figure, run in zip(found, runs, strict=True):
            less = [other for other in found if better(goal, figure, other, run)]
            if less:
                text = f"{goal.metric} is {figure:.6g}, and {less[0]:.6g} of the same model's answers in another scenario."
                yield Finding(run.folder / "result.json", "quality", text, "Run --mode=accuracy again.")
