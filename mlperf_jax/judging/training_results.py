"""Judges training results: every log, the runs of a result together, and the tree they lie in."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mlperf_jax.errors import UserError
from mlperf_jax.judging import language_models, official, own_training, training_counts, training_log
from mlperf_jax.judging.findings import ERROR, WARNING, Finding, listed, plural, warning
from mlperf_jax.judging.training_log import Judged
from mlperf_jax.rounds import training_rules
from mlperf_jax.rounds.collect import Reader, Result, find_description, named_round
from mlperf_jax.rounds.log_lines import read_events
from mlperf_jax.rounds.reference_points import judge_result
from mlperf_jax.rounds.scoring import score_runs
from mlperf_jax.rounds.training_rules import LOCAL

# What all runs of a result have in common: they are repetitions of one thing.
_COMMON = (
    "submission_benchmark",
    "submission_division",
    "submission_org",
    "submission_platform",
    "global_batch_size",
    "gradient_accumulation_steps",
    "opt_name",
    "quality_target",
)
# "From v4.1 onwards, the seeds should be logged" (training_rules.adoc, revision ad8c1ac); before, published rounds may
# have none. Runs of our own always have.
_SEEDS_OPTIONAL = training_rules.ROUNDS[: training_rules.ROUNDS.index("v4.1")]
_COMMON_PREFIXES = ("opt_", "lars_", "sgd_", "lamb_", "adam_")


def judge_results(roots: Sequence[Path], ruleset: str | None) -> tuple[list[Finding], int]:
    """All findings on the training results below `roots`.

    Args:
        roots: folders of results of ours, packages, or published rounds; or logs.
        ruleset: judge by this one, e.g. "4.0.0"; None takes that of the round or the benchmark.

    Returns:
        The findings, and how many logs were judged.
    """
    results, problems = Reader().read(roots)
    found: list[Finding] = []
    count = 0
    for result in results:
        alone = any(root.is_file() and Path(os.path.abspath(root)).parent == result.path for root in roots)
        found += _judge_result(result, ruleset, alone=alone)
        count += len(result.logs)
    unread = [problem for problem in problems if "damaged MLPerf line" not in problem.reason]
    found += [training_log.unreadable(problem.path, f"{problem.reason}.") for problem in unread]
    return found, count + len({p.path for p in unread if p.path.name.startswith("result_")})


def _judge_result(result: Result, asked: str | None, *, alone: bool) -> Iterator[Finding]:
    benchmark = result.rules
    ruleset = asked or official.find_ruleset(benchmark.key, result.round)
    # Runs of our own go by the round whose rules they were made by.
    round_name = result.round
    if ruleset and (asked or round_name == LOCAL):
        round_name = f"v{ruleset.removesuffix('.0')}"
    result = dataclasses.replace(result, round=round_name)
    if benchmark.key not in training_rules.BENCHMARKS:
        text = f"{result.benchmark} is no benchmark of MLPerf Training: only what is general was judged."
        yield warning(result.path, "benchmark", text, "Name the folder as the rules name the benchmark.")
    judged: list[Judged] = []
    for path in (log.path for log in result.logs):
        try:
            events, damaged = read_events(path)
        except UserError as error:
            yield training_log.unreadable(path, str(error))
            continue
        yield from training_log.damaged(path, damaged)
        own = training_log.read_own(path)
        judged.append(Judged(path, events, benchmark, round_name, result.division == "closed", own))
    for log in judged:
        yield from training_log.judge(log)
        yield from training_counts.judge(log)
        yield from own_training.judge(log)
        yield from language_models.judge(log)
        if ruleset and log.path.suffix == ".txt":
            yield from _forgiven(official.check_log(log.path, ruleset), log)
    yield from _together(judged, seeds_count=named_round(result.path) not in _SEEDS_OPTIONAL)
    yield from _naming(result, judged)
    if not alone:  # a log that was named by itself is no result
        yield from _number_of_runs(result, judged)
    yield from _convergence(result)
    yield from _system(result, ruleset)


def _forgiven(found: Iterable[Finding], log: Judged) -> Iterator[Finding]:
    """The official checker's complaint that the target was not reached, where it forbids nothing: by a run
    that says so ("aborted", "abort" in some), which the score judges; or in open, for which ruleset 0.7.0 has
    closed's targets."""
    stop = log.first("run_stop")
    missed = stop is not None and str(stop.metadata.get("status", "")).lower() in ("aborted", "abort")
    own_target = not log.closed and log.first("quality_target") is not None
    for finding in found:
        if (missed or own_target) and finding.text.startswith(
            ("Failed checks for eval_accuracy", "Failed checks for eval_error")
        ):
            finding = dataclasses.replace(finding, severity=WARNING)
        yield finding


def _together(logs: Sequence[Judged], seeds_count: bool) -> Iterator[Finding]:
    """The runs of a result against each other; seeds_count: whether the rules want seeds that differ."""
    seeds: dict[object, Judged] = {}
    starts: dict[tuple, Judged] = {}
    for log in logs:
        mine = log.all("seed")
        if not mine:
            text = "no seed is logged, so that nothing tells this run from the others."
            severity = log.strict if seeds_count else WARNING
            yield log.finding(None, "seed", text, "Log the seed of every run.", severity)
        for value, event in {repr(event.value): event for event in mine}.items():
            other = seeds.setdefault(value, log)
            if other is not log:
                text = f"seed {event.value} is that of {other.path.name} too."
                severity = ERROR if seeds_count else WARNING
                yield log.finding(event, "seed", text, "Give every run a seed of its own.", severity)
        begin, end = log.first("run_start"), log.first("run_stop")
        if begin and end:
            other = starts.setdefault((begin.time_ms, end.time_ms), log)
            if other is not log:
                text = f"begins and ends when {other.path.name} does: the same run twice."
                yield log.finding(begin, "same-run", text, "Leave one of them out.")
    yield from _differences(logs)


def _differences(logs: Sequence[Judged]) -> Iterator[Finding]:
    told: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    firsts = [{e.key: e for e in reversed(log.events)} for log in logs]
    for first in firsts:
        for key, event in first.items():
            if key in _COMMON or key.startswith(_COMMON_PREFIXES):
                told[key][repr(event.value)] += 1
    for key, values in sorted(told.items()):
        if len(values) < 2:
            continue
        usual = values.most_common(1)[0][0]
        for log, first in zip(logs, firsts, strict=True):
            if key in first and repr(first[key].value) != usual:
                text = f"{key} is {first[key].value}, and {usual} in other runs of this result."
                mend = "Runs of one result differ by their seed alone; put others elsewhere."
                yield log.finding(first[key], "runs-differ", text, mend)


def _naming(result: Result, logs: Sequence[Judged]) -> Iterator[Finding]:
    for log in logs:
        event = log.first("submission_benchmark")
        known = training_rules.find_benchmark(str(event.value)) if event else None
        if event and known is not result.rules and result.benchmark != event.value:
            text = f"the log is of {event.value}, and lies among results of {result.benchmark}."
            yield log.finding(event, "naming", text, "Put the log where its benchmark's are.")
    others = [path.name for path in sorted(result.path.iterdir()) if not path.name.startswith("result_")]
    ignored = {"scaling.json", "package_checker_params", "power", "rpd.txt"}
    strange = [name for name in others if name not in ignored and not name.startswith(".")]
    if strange and any(path.name.startswith("result_") for path in result.path.iterdir()):
        text = f"files that are no results lie here: {listed(strange)}."
        yield warning(result.path, "naming", text, "Call logs result_<i>.txt; keep other files elsewhere.")


def _number_of_runs(result: Result, logs: Sequence[Judged]) -> Iterator[Finding]:
    required = result.rules.required_runs(result.round)
    closed = result.division == "closed"
    severity = ERROR if closed else WARNING
    counted = [log for log in logs if log.first("resumed") is None]
    if len(counted) < required:
        resumed = (
            f" ({plural(len(logs) - len(counted), 'resumed run')} not counted)"
            if len(counted) < len(logs)
            else ""
        )
        text = f"{plural(len(counted), 'run')}{resumed}, and a score of {result.rules.key} takes {required}."
        yield Finding(result.path, "runs", text, f"Make {required - len(counted)} more.", severity)
    elif len(logs) > required:
        text = f"{len(logs)} runs, and a submission of {result.rules.key} has exactly {required}."
        yield Finding(
            result.path, "runs", text, "Choose before the runs are made; all of those count.", WARNING
        )
    else:
        # The rules' number is here: why there may be no score nevertheless.
        score = score_runs(result.logs, result.rules, result.round)
        if score.minutes is None:
            yield Finding(
                result.path,
                "no-score",
                f"the runs make no score: {score.reason}.",
                "Make other runs.",
                severity,
            )


def _convergence(result: Result) -> Iterator[Finding]:
    """The reference convergence points, which only closed is held against."""
    if result.division != "closed" or result.round < "v1.0":
        return
    verdict = judge_result(result.logs, result.rules, result.round)
    if verdict.passed is False:
        mend = "Converging faster than the reference is another training: find out why."
        scaled = (result.path / "scaling.json").is_file()
        severity = WARNING if scaled else ERROR
        yield Finding(result.path, "reference-convergence", f"{verdict.text}.", mend, severity)


def _system(result: Result, ruleset: str | None) -> Iterator[Finding]:
    path = find_description(result.path)
    if path is None:
        mend = "Put systems/<system>.json beside results."
        severity = ERROR if result.division == "closed" else WARNING
        yield Finding(
            result.path, "system-description", f"nothing describes {result.system}.", mend, severity
        )
        return
    if path.name == "entry.json" or ruleset is None:
        return  # v0.5
    yield from official.check_system(path, ruleset)
    # Mini and closed runs of ours share one description, which cannot agree with both.
    logged = {str(log.value("submission_division")) for log in result.logs} - {"None"}
    described = result.description.division
    ours = any(log.ours for log in result.logs) and (path.parent.parent / "runs").is_dir()
    if logged and described not in logged and not ours and described != "unknown":
        text = f"the description says {described}, and the logs say {listed(sorted(logged))}."
        yield Finding(path, "division", text, "State one division in both.")
