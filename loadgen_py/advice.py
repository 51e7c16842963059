"""Why a result is INVALID: the condition, by how much, and what to try next."""

from __future__ import annotations

import dataclasses
import math

from loadgen_py.settings import TestScenario
from loadgen_py.statistics import Evidence, PerformanceVerdict


@dataclasses.dataclass(frozen=True)
class Reason:
    """One condition that a run did not meet.

    Attributes:
        condition: its short name, such as `min_duration`.
        text: what was missed, by how much, and what to change, in a sentence or two.
        try_next: settings to try, by the names of `TestSettings`.
    """

    condition: str
    text: str
    try_next: dict[str, int | float] = dataclasses.field(default_factory=dict)


def reasons(verdict: PerformanceVerdict) -> list[Reason]:
    """One reason for each condition of a verdict that is not met."""
    found: list[Reason] = []
    if not verdict.perf_constraints_met:
        found += _latency_reasons(verdict)
    if not verdict.min_duration_met:
        found.append(_duration_reason(verdict))
    if not verdict.min_queries_met:
        found.append(_count_reason(verdict))
    if not verdict.early_stopping.met:
        found += _evidence_reasons(verdict)
    return found


def _latency_reasons(verdict: PerformanceVerdict) -> list[Reason]:
    settings = verdict.settings
    found = []
    for name, spread, bound_ns in verdict.bounded:
        if spread is None or spread.target <= bound_ns:
            continue
        count = len(spread.values)
        slow = int((spread.values > bound_ns).sum())
        allowed = count - int(count * settings.target_latency_percentile) - 1
        qps = _next_qps(verdict)
        found.append(
            Reason(
                "performance_constraints",
                f"The {settings.target_latency_percentile * 100:g}th percentile {name} is "
                f"{spread.target / 1e6:.3f} ms, {(spread.target - bound_ns) / 1e6:.3f} ms over the bound of "
                f"{bound_ns / 1e6:g} ms: {slow} of {count} queries were over it, at most {allowed} may be. "
                f"Try server_target_qps={qps:g}.",
                {"server_target_qps": qps},
            )
        )
    return found


def _next_qps(verdict: PerformanceVerdict) -> float:
    """A rate to try: what the system kept up with, if it fell behind, otherwise a tenth less."""
    measured, target = verdict.measured, verdict.settings.target_qps
    completed = verdict.sample_count / measured.final_done_s if measured.final_done_s > 0 else target
    qps = min(0.9 * target, 0.95 * completed)
    return float(f"{qps:.3g}")


def _duration_reason(verdict: PerformanceVerdict) -> Reason:
    measured, settings = verdict.measured, verdict.settings
    wanted_s = settings.requested.min_duration_ms / 1000
    scenario = settings.scenario
    if scenario == TestScenario.Offline:
        rate = verdict.sample_count / measured.max_latency_s if measured.max_latency_s else 0.0
        qps = float(f"{rate * 1.02:.4g}")
        took_s = measured.max_latency_s
        text = (
            f"The run took {took_s:.3f} s, {wanted_s - took_s:.3f} s less than the minimum of "
            f"{wanted_s:g} s, because {verdict.sample_count} samples were too few. "
            f"Try offline_expected_qps={qps:g}, or offline_warmup_ms to have the size found."
        )
        return Reason("min_duration", text, {"offline_expected_qps": qps})
    if scenario == TestScenario.Server:
        text = (
            f"The last query was scheduled at {measured.final_scheduled_s:.3f} s, before the minimum of "
            f"{wanted_s:g} s: the run was cut short. "
            "Raise or remove max_query_count, max_duration_ms and server_max_async_queries."
        )
        return Reason("min_duration", text)
    count = measured.queries_issued
    interval_ns = int(measured.final_issued_s * 1e9 / max(count - 1, 1) * 0.9) or 1
    name = "single_stream" if scenario == TestScenario.SingleStream else "multi_stream"
    return Reason(
        "min_duration",
        f"The last query was issued at {measured.final_issued_s:.3f} s, "
        f"{wanted_s - measured.final_issued_s:.3f} s before the minimum of {wanted_s:g} s, after all {count} "
        f"issued queries. Try {name}_expected_latency_ns={interval_ns}.",
        {f"{name}_expected_latency_ns": interval_ns},
    )


def _count_reason(verdict: PerformanceVerdict) -> Reason:
    settings, measured = verdict.settings, verdict.measured
    if measured.queries_issued < settings.min_query_count:
        done, wanted, what = measured.queries_issued, settings.min_query_count, "queries were issued"
    else:
        done, wanted, what = verdict.sample_count, settings.min_sample_count, "samples were answered"
    return Reason(
        "min_queries",
        f"Only {done} of at least {wanted} {what}, {wanted - done} too few: the run ended early. "
        "Raise or remove max_query_count and max_duration_ms.",
    )


def _evidence_reasons(verdict: PerformanceVerdict) -> list[Reason]:
    """One reason for each kind of latency of which too little is known: where one fails, the others are told too."""
    count, settings = verdict.measured.queries_issued, verdict.settings
    if settings.scenario == TestScenario.Server:
        return [_server_evidence(verdict, one) for one in verdict.evidence if one.missing]
    missing = verdict.early_stopping.queries_missing
    wanted = count + missing
    text = f"{count} queries are {missing} too few for early stopping. Try min_query_count={wanted}."
    return [Reason("early_stopping", text, {"min_query_count": wanted})]


def _server_evidence(verdict: PerformanceVerdict, found: Evidence) -> Reason:
    count = verdict.measured.queries_issued
    bound = "the bound" if found.name == "latency" else f"the bound on the {found.name}"
    if not found.bounded:
        text = f"{count} queries with {found.slow} over {bound} prove nothing: lower the rate first."
        return Reason("early_stopping", text)
    most = max(one.missing for one in verdict.evidence if one.bounded)
    duration_ms = math.ceil((count + most) / verdict.settings.target_qps * 1100)
    text = (
        f"{count} queries, {found.slow} of them over {bound}, are {found.missing} too few "
        f"for early stopping, if all more are under it. Try min_duration_ms={duration_ms}."
    )
    return Reason("early_stopping", text, {"min_duration_ms": duration_ms})
