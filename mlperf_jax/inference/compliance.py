"""Runs the compliance tests that a closed submission needs, on the runs that it is to submit.

TEST01 and TEST04 repeat the performance run with its very settings under an audit.config; what they must
show is in `judging/compliance.py`. The logs go where a submission has them:

    SCENARIO/TEST01/{verify_accuracy.txt,verify_performance.txt,accuracy/,performance/run_1/}
    SCENARIO/TEST04/{verify_performance.txt,performance/run_1/}
    SCENARIO/TEST06/{verify_accuracy.txt,accuracy/,performance/run_1/}

Where answers of TEST01 differ, as they may with the batch that a sample is in, what counts is how good they are:
accuracy/ then holds baseline_accuracy.txt and compliance_accuracy.txt.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen_py import TestMode, TestScenario, TestSettings
from mlperf_jax.errors import UserError
from mlperf_jax.judging import accuracy_log, compliance
from mlperf_jax.judging.loadgen_run import LoadGenRun, read_loadgen_run
from mlperf_jax.results.folders import read_json, write_bytes
from mlperf_jax.rounds.inference_rules import find_model

if TYPE_CHECKING:
    from mlperf_jax.inference.measure import Harness, Measurement


def tests_of(loadgen_model: str) -> tuple[str, ...]:
    """The tests to run for a benchmark, of those that this project can run."""
    known = find_model(loadgen_model)
    if known and compliance.TOKENS in known.tests:
        return (compliance.TOKENS,)
    return tuple(test for test in compliance.AUDIT_CONFIG if known is None or test in known.tests)


def run_tests(harness: Harness, scenario: TestScenario) -> Iterator[Measurement]:
    """Runs and verifies every test of a scenario.

    Raises:
        UserError: there are no VALID performance run and no accuracy run to hold the tests against.
    """
    folder = harness.root / harness.name_of(scenario)
    reference = _reference(folder)
    settings = settings_of(reference.own, scenario)
    for test in tests_of(harness.numbers["loadgen_model"]):
        measured = harness.run_audited(settings, test, compliance.audit_config(test))
        if test == compliance.TOKENS:
            first_told = scenario != TestScenario.Offline
            verdict = verify_tokens(folder / test, harness.numbers["ends"], first_told=first_told)
            yield dataclasses.replace(measured, verdicts=(verdict,))
            continue
        verdicts = verify(folder, test, reference)
        if test == "TEST01" and not verdicts["accuracy"].passed:
            verdicts["accuracy"] = judge_answers(harness, folder)
        yield dataclasses.replace(measured, verdicts=tuple(verdicts.values()))


def settings_of(record: Mapping[str, Any], scenario: TestScenario) -> TestSettings:
    """The settings that a run's result.json says it was asked with.

    Raises:
        UserError: it holds none.
    """
    names = {field.name for field in dataclasses.fields(TestSettings)}
    told = record.get("settings")
    if not isinstance(told, dict) or not names >= told.keys():
        raise UserError(f"The {scenario.name} performance run does not say how it was made; run it again.")
    return TestSettings(**{**told, "scenario": scenario, "mode": TestMode.PerformanceOnly})


def verify(folder: Path, test: str, reference: LoadGenRun) -> dict[str, compliance.Verdict]:
    """Verifies a test that has run, and writes verify_*.txt beside it.

    Returns:
        The verdicts on "performance", and of TEST01 on "accuracy".

    Args:
        folder: .../SCENARIO.
        test: "TEST01" or "TEST04".
        reference: the performance run.
    """
    place = folder / test / "performance" / "run_1"
    verdicts = {
        "performance": compliance.verify_performance(test, reference.values, read_loadgen_run(place).values)
    }
    if test == "TEST01":
        sampled = folder / test / "accuracy" / accuracy_log.NAME
        sampled.parent.mkdir(parents=True, exist_ok=True)
        for name in compliance.OTHERWISE:  # of an earlier test
            (sampled.parent / name).unlink(missing_ok=True)
        os.replace(place / accuracy_log.NAME, sampled)
        whole = accuracy_log.read_answers(folder / "accuracy" / accuracy_log.NAME)
        verdicts["accuracy"] = compliance.verify_accuracy(whole, accuracy_log.read_answers(sampled))
    for what, verdict in verdicts.items():
        write_bytes(folder / test / f"verify_{what}.txt", verdict.text.encode())
    return verdicts


def verify_tokens(folder: Path, ends: Sequence[int], *, first_told: bool) -> compliance.Verdict:
    """Verifies a TEST06 that has run in its folder, and writes verify_accuracy.txt there."""
    log = folder / "accuracy" / accuracy_log.NAME
    log.parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder / "performance" / "run_1" / accuracy_log.NAME, log)
    verdict = compliance.verify_tokens(accuracy_log.read_token_answers(log), ends, first_told=first_told)
    write_bytes(folder / "verify_accuracy.txt", verdict.text.encode())
    return verdict


def judge_answers(harness: Harness, folder: Path) -> compliance.Verdict:
    """How good the answers of TEST01 are where they are not those of the accuracy run; written beside them."""
    log = folder / "TEST01" / "accuracy" / accuracy_log.NAME
    whole, sampled = (accuracy_log.read_answers(p) for p in (folder / "accuracy" / accuracy_log.NAME, log))
    samples = np.array(sorted(whole.data.keys() & sampled.data.keys()), np.int64)
    goals = harness.goals
    known = find_model(harness.numbers["loadgen_model"])
    metrics = [known.metric if known else "accuracy"]
    metrics += [goal.name for goal in goals[len(metrics) :]]
    found: list[Mapping[str, float]] = []
    for answers, name in zip((whole, sampled), compliance.OTHERWISE, strict=True):
        data = [bytes.fromhex(answers.data[sample]) for sample in samples.tolist()]
        none = {goal.name: 0.0 for goal in goals}
        figures = harness.workload.answered_figures(samples, data) if data else none
        lines = [
            accuracy_log.accuracy_line(metric, figures[goal.name], len(data), goal.metric)
            for metric, goal in zip(metrics, goals, strict=False)
        ]
        write_bytes(log.parent / name, "".join(f"{line}\n" for line in lines).encode())
        found.append(figures)
    verdicts = [
        compliance.verify_quality(goal.metric, *(figures[goal.name] for figures in found)) for goal in goals
    ]
    passed = all(verdict.passed for verdict in verdicts)
    return compliance.Verdict(passed, tuple(line for verdict in verdicts for line in verdict.lines))


def _reference(folder: Path) -> LoadGenRun:
    first = f"run --scenario={folder.name} first, without --mode"
    place = folder / "performance" / "run_1"
    if not (place / "result.json").is_file() or not (folder / "accuracy" / accuracy_log.NAME).is_file():
        raise UserError(f"{folder} holds no performance and accuracy run to test; {first}.")
    read_json(place / "result.json")  # of a schema that this version knows
    run = read_loadgen_run(place)
    if run.value("result_validity") != "VALID":
        raise UserError(f"The performance run in {place} is not VALID, and cannot be tested; {first}.")
    return run
