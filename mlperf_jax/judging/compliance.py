"""The compliance tests of closed inference: what their verifiers ask, in our own words.

TEST01: while performance is measured a random part of the answers is logged; they must be the ones that
the accuracy run gave, and the performance that without logging. TEST04: the same sample again and again
may not be answered faster: that would be an answer kept in a cache. TEST06, of tokens: nothing follows the one that ends a
text, the first is the one that was told first, and all were counted. Source: mlcommons/inference,
compliance/TEST01, TEST04 and TEST06 (audit.config, verify_accuracy.py, verify_performance.py, run_verification.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlperf_jax.judging.accuracy_log import Answers, TokenAnswer
from mlperf_jax.rounds.inference_logs import METRICS
from mlperf_jax.rounds.objects import number

PASS, FAIL = "TEST PASS", "TEST FAIL"
_STREAMS = ("SingleStream", "MultiStream")
_SHARE, _LOOSE_SHARE = 0.10, 0.20
QUALITY_SHARE = 0.01
# Beside TEST01's accuracy log where answers differ: how good those of the accuracy run and of the test are.
OTHERWISE = ("baseline_accuracy.txt", "compliance_accuracy.txt")
# Latencies, in ns, up to which the machine's own unrest counts for more.
_SHORT = {"SingleStream": 200_000, "MultiStream": 1_600_000}

# key of audit.config -> value; of TEST04 for each scenario.
AUDIT_CONFIG = {
    "TEST01": {"mode": 2, "accuracy_log_rng_seed": 720381539243781796, "accuracy_log_sampling_target": 4096},
    "TEST04": {
        "mode": 2,
        "performance_issue_unique": 0,
        "performance_issue_same": 1,
        "performance_issue_same_index": 3,
    },
}
TOKENS = "TEST06"
_TOKENS_AUDIT_CONFIG = {
    "mode": 2,
    "accuracy_log_rng_seed": 720381539243781796,
    "accuracy_log_sampling_target": 100,
    "min_query_count": 100,
    "min_duration": 0,
    "sample_concatenate_permutation": 0,
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """passed, and the lines of verify_accuracy.txt or verify_performance.txt, the last of which says so."""

    passed: bool
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def audit_config(test: str) -> str:
    """The text of a test's audit.config."""
    asked = _TOKENS_AUDIT_CONFIG if test == TOKENS else AUDIT_CONFIG[test]
    return "".join(f"*.*.{key} = {value}\n" for key, value in asked.items())


def audited(test: str, fields: Mapping[str, Any]) -> str:
    """Why a run was not made under a test's audit.config; "" if it was."""
    for key, value in AUDIT_CONFIG[test].items():
        if key == "mode":
            if fields.get("effective_test_mode") != "PerformanceOnly":
                return f"it ran in mode {fields.get('effective_test_mode')}, not PerformanceOnly"
        elif (told := fields.get(f"effective_{key}")) is None or int(told) != value:
            return f"{key} was {told}, and the test wants {value}"
    return ""


def verify_accuracy(reference: Answers, sampled: Answers) -> Verdict:
    """TEST01: every logged answer must be the one of the accuracy run.

    More strictly than the official verifier, which compares the first byte (or number) of each alone.
    """
    known = [sample for sample in sampled.data if sample in reference.data]
    wrong = [sample for sample in known if sampled.data[sample] != reference.data[sample]]
    differing = set(wrong) | set(sampled.differing)
    passed = bool(known) and not differing
    lines = (
        f"answers of the accuracy run: {reference.count}",
        f"answers logged under performance: {sampled.count}",
        f"samples in both: {len(known)}",
        f"samples answered otherwise: {len(differing)}",
        f"samples that the accuracy run has not: {len(sampled.data) - len(known)}",
        PASS if passed else FAIL,
    )
    return Verdict(passed, lines)


def verify_tokens(answers: Sequence[TokenAnswer], ends: Collection[int], *, first_told: bool) -> Verdict:
    """TEST06, in the official verifier's words.

    More strictly than that, which looks for one end token at the end of a text alone.

    Args:
        answers: logged under performance.
        ends: tokens that end a text.
        first_told: whether first tokens were: in every scenario but Offline.
    """
    checks = {
        "EOS": not any(set(ends) & set(one.tokens[:-1]) for one in answers),
        "Sample length": all(len(one.tokens) == one.counted for one in answers),
    }
    first = all(one.first == one.tokens[:1] for one in answers)
    passed = bool(answers) and all(checks.values()) and (first or not first_told)
    lines = (
        f"First token check pass: {first if first_told else 'Skipped'}",
        *(f"{name} check pass: {met}" for name, met in checks.items()),
        f"TEST06 verification {'complete' if passed else 'failed'}",
        PASS if passed else FAIL,
    )
    return Verdict(passed, lines)


def verify_quality(metric: str, baseline: float, tested: float) -> Verdict:
    """TEST01 where answers differ, as they may with the batch that a sample is in: whether they are as good.

    Args:
        metric: its name.
        baseline, tested: quality of the accuracy run's answers, and of those under performance, to the same samples.
    """
    apart = abs(1 - baseline / tested) if baseline and tested else 1.0
    lines = (
        f"{metric} of the accuracy run's answers to these samples: {baseline:.6g}",
        f"{metric} of those under performance: {tested:.6g}",
        f"apart by {100 * apart:.3g} %, allowed: {100 * QUALITY_SHARE:g} %",
    )
    return Verdict(apart <= QUALITY_SHARE, lines)


def verify_performance(test: str, reference: Mapping[str, Any], tested: Mapping[str, Any]) -> Verdict:
    """Whether a test's performance is what it must be beside that of the run that is submitted.

    Args:
        test: "TEST01" or "TEST04".
        reference, tested: fields of the two detail logs.
    """
    scenario = str(reference.get("effective_scenario"))
    why = ""
    if tested.get("effective_scenario") != scenario or scenario not in METRICS:
        why = f"the scenarios are {scenario} and {tested.get('effective_scenario')}"
    elif bound(reference) != bound(tested) and scenario == "Server":
        why = f"Server's bounds are {bound(reference)} and {bound(tested)} ns"
    elif not all(fields.get("result_validity") == "VALID" for fields in (reference, tested)):
        why = "not both runs are VALID"
    if why:
        return Verdict(False, (f"{FAIL}: {why}",))
    score = METRICS[scenario][0]
    ours, theirs = (number(fields.get(score)) or 0.0 for fields in (tested, reference))
    if test == "TEST04" and scenario in _STREAMS:
        ours, theirs = (1e9 / value if value else 0.0 for value in (ours, theirs))
    # As officially, also where TEST04 holds it against samples per second.
    loose = scenario in _SHORT and theirs <= _SHORT[scenario]
    share = _LOOSE_SHARE if loose else _SHARE
    upper = theirs * (1 + share)
    passed = ours < upper if test == "TEST04" else theirs * (1 - share) <= ours <= upper
    allowed = f"less than {upper:g}" if test == "TEST04" else f"{theirs * (1 - share):g} to {upper:g}"
    lines = (
        f"reference score = {theirs}",
        f"test score = {ours}",
        f"allowed: {allowed}",
        PASS if passed else FAIL,
    )
    return Verdict(passed and theirs > 0, lines if theirs > 0 else (f"{FAIL}: the reference has no score",))


def bound(fields: Mapping[str, Any]) -> float | None:
    """Server's latency bound in ns."""
    return number(fields.get("effective_target_latency_ns"))
