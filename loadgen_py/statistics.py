"""From the times of a phase to its figures and to the verdict VALID or INVALID.

All latencies are whole nanoseconds. The figures, their rounding and the conditions are the
official ones (`results.cc`): a percentile is the sorted latency at position trunc(n * p),
means are integer divisions.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from loadgen_py.early_stopping import fast_queries_needed, slow_queries_allowed
from loadgen_py.issue import Phase
from loadgen_py.responses import MISSING_TOKENS, ResponseRecorder
from loadgen_py.settings import EffectiveSettings, TestScenario

PERCENTILES = (0.50, 0.90, 0.95, 0.97, 0.99, 0.999)
_MULTI_STREAM_PERCENTILE = 0.99  # SingleStream runs also estimate this one
_ONE_AT_A_TIME = (TestScenario.SingleStream, TestScenario.MultiStream)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one performance phase measured; seconds count from its start.

    Attributes:
        sample_latencies: `[N]` ns of the answered samples, in order of issue.
        queries_issued: the number of queries.
        max_latency_s: the largest of `sample_latencies`.
        final_scheduled_s, final_issued_s, final_done_s: the last query's own times.
        query_latencies: `[queries_issued]` ns, MultiStream only.
        first_token_latencies: `[N]` ns, where tokens are measured, but not in Offline.
        time_per_output_token: `[N]` ns, likewise.
        tokens_per_sample: `[N]`, where tokens are measured.
    """

    sample_latencies: np.ndarray
    queries_issued: int
    max_latency_s: float
    final_scheduled_s: float
    final_issued_s: float
    final_done_s: float
    query_latencies: np.ndarray | None = None
    first_token_latencies: np.ndarray | None = None
    time_per_output_token: np.ndarray | None = None
    tokens_per_sample: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A sorted set of latencies in ns and what the logs say of it.

    Attributes:
        target: the latency at the scenario's own percentile.
        at: the latency at each of `PERCENTILES`.
    """

    values: np.ndarray
    minimum: int
    maximum: int
    mean: int
    target: int
    at: tuple[int, ...]


class BoundedLatency(NamedTuple):
    """One kind of latency, None where none was measured, and Server's bound in ns."""

    name: str
    latencies: Distribution | None
    bound_ns: int


class Evidence(NamedTuple):
    """How far Server's queries prove that one kind of latency keeps its bound.

    Attributes:
        name: the kind.
        bounded: whether it does keep it at the percentile.
        slow: queries over the bound.
        missing: queries under it that it would still take; 0 where there are enough.
    """

    name: str
    bounded: bool
    slow: int
    missing: int


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Whether there is enough evidence, and the estimates that submissions are judged by.

    Attributes:
        texts: the official sentences; with tokens for first tokens and for time per token.
        single_stream_ns, multi_stream_ns: percentile estimates, 0 where not made.
        queries_missing: how many more queries it would take.
    """

    met: bool
    texts: tuple[str, ...]
    single_stream_ns: int = 0
    multi_stream_ns: int = 0
    queries_missing: int = 0


@dataclasses.dataclass(frozen=True)
class PerformanceVerdict:
    """The figures of a performance phase and the conditions it met.

    Attributes:
        perf_advice, duration_advice: the official recommendations, empty where met.
    """

    settings: EffectiveSettings
    measured: Measurement
    sample_count: int
    samples: Distribution | None
    queries: Distribution | None
    first_token: Distribution | None
    per_token: Distribution | None
    token_count: int
    overlatency_count: int
    min_duration_met: bool
    min_queries_met: bool
    perf_constraints_met: bool
    early_stopping: EarlyStopping
    perf_advice: str
    duration_advice: str

    @property
    def bounded(self) -> list[BoundedLatency]:
        """The latencies that Server bounds."""
        return _bounded(self.settings, self.samples, self.first_token, self.per_token)

    @property
    def evidence(self) -> list[Evidence]:
        """Of every latency that Server bounds: the official verdict leaves the others out where one fails."""
        percentile, count = self.settings.target_latency_percentile, self.measured.queries_issued
        found = []
        for name, latencies, bound_ns in self.bounded:
            slow = int(np.count_nonzero(latencies.values > bound_ns)) if latencies else 0
            missing = max(fast_queries_needed(slow, percentile) + slow - count, 0)
            found.append(Evidence(name, latencies is None or latencies.target <= bound_ns, slow, missing))
        return found

    @property
    def valid(self) -> bool:
        """All conditions met, as the official package decides."""
        return (
            self.min_duration_met
            and self.min_queries_met
            and self.perf_constraints_met
            and self.early_stopping.met
        )


def measure(phase: Phase) -> Measurement:
    """What the answered samples of a phase say."""
    responses, queries, scenario = phase.responses, phase.queries, phase.settings.scenario
    size, count = queries.samples_per_query, phase.queries_issued
    done = np.frombuffer(responses.done, np.int64)[: responses.issued]
    issued_at = np.frombuffer(phase.issued_at, np.int64)[:count]
    scheduled = _scheduled(phase, issued_at)
    answered = done > 0
    latencies = (done - scheduled)[answered]
    query_latencies = None
    if scenario == TestScenario.MultiStream:
        whole = answered.reshape(count, size).all(axis=1)
        query_latencies = (done.reshape(count, size).max(axis=1, initial=0) - issued_at)[whole]
    last_query = done[(count - 1) * size :] if scenario != TestScenario.Offline else done
    last_done = int(last_query.max(initial=0)) or int(done.max(initial=phase.start_ns))
    tokens = {}
    if phase.settings.requested.use_token_latencies:
        tokens = _token_measurements(responses, scheduled, answered, latencies)
    return Measurement(
        sample_latencies=latencies,
        queries_issued=count,
        max_latency_s=int(latencies.max(initial=0)) / 1e9,
        final_scheduled_s=int(queries.due_ns[:count].max(initial=0)) / 1e9,
        final_issued_s=int(issued_at[-1] - phase.start_ns) / 1e9 if count else 0.0,
        final_done_s=(last_done - phase.start_ns) / 1e9,
        query_latencies=query_latencies,
        **tokens,
    )


def _scheduled(phase: Phase, issued_at: np.ndarray) -> np.ndarray:
    """When each issued sample was due, `[samples]` ns: what latencies count from."""
    issued = phase.responses.issued
    if phase.settings.scenario == TestScenario.Server:
        return phase.queries.due_ns[:issued] + phase.start_ns
    if phase.settings.scenario == TestScenario.Offline:
        return np.full(issued, phase.start_ns, np.int64)
    return np.repeat(issued_at, phase.queries.samples_per_query)


def _token_measurements(
    responses: ResponseRecorder, scheduled: np.ndarray, answered: np.ndarray, latencies: np.ndarray
) -> dict[str, np.ndarray]:
    """The token fields of `Measurement`; a sample without a first token has it with its answer."""
    n_tokens = np.frombuffer(responses.n_tokens, np.int64)[: len(answered)][answered]
    if not responses.first_token_at:
        return {"tokens_per_sample": n_tokens}
    first_at = np.frombuffer(responses.first_token_at, np.int64)[: len(answered)]
    first = np.where(first_at > 0, first_at - scheduled, 0)[answered]
    first = np.where(first_at[answered] > 0, first, latencies)
    gaps = np.where(n_tokens == 1, 1, n_tokens - 1)
    # Toward zero, as C++ divides: 0 tokens, an error, make the time negative.
    per_token = np.sign(gaps) * ((latencies - first) // np.abs(gaps))
    return {"first_token_latencies": first, "time_per_output_token": per_token, "tokens_per_sample": n_tokens}


def distribution(latencies: np.ndarray | None, percentile: float) -> Distribution | None:
    """Sorts latencies and reads the figures off; None where there are none."""
    if latencies is None or not len(latencies):
        return None
    values = np.sort(latencies)
    count = len(values)

    def at(share: float) -> int:
        return int(values[int(count * share)])

    # The official sum is divided as an unsigned number, which only errors make negative.
    mean = int(values.sum()) % (1 << 64) // count
    return Distribution(
        values, int(values[0]), int(values[-1]), mean, at(percentile), tuple(at(p) for p in PERCENTILES)
    )


def judge(settings: EffectiveSettings, measured: Measurement) -> PerformanceVerdict:
    """The official verdict on a measurement."""
    scenario, requested = settings.scenario, settings.requested
    percentile = settings.target_latency_percentile
    samples = distribution(measured.sample_latencies, percentile)
    queries = distribution(measured.query_latencies, percentile)
    first_token = distribution(measured.first_token_latencies, percentile)
    per_token = distribution(measured.time_per_output_token, percentile)
    counts = measured.tokens_per_sample
    token_count = int(counts[counts != MISSING_TOKENS].sum()) if counts is not None else 0
    sample_count = len(measured.sample_latencies)
    overlatency = 0
    if samples and scenario == TestScenario.Server:
        overlatency = int(np.count_nonzero(samples.values > settings.target_latency_ns))
    reached_s = {
        TestScenario.Offline: measured.max_latency_s,
        TestScenario.Server: measured.final_scheduled_s,
    }.get(scenario, measured.final_issued_s)
    duration_met = reached_s >= requested.min_duration_ms / 1000
    bounded = _bounded(settings, samples, first_token, per_token)
    perf_advice = _performance_advice(scenario, bounded)
    return PerformanceVerdict(
        settings=settings,
        measured=measured,
        sample_count=sample_count,
        samples=samples,
        queries=queries,
        first_token=first_token,
        per_token=per_token,
        token_count=token_count,
        overlatency_count=overlatency,
        min_duration_met=duration_met,
        min_queries_met=measured.queries_issued >= settings.min_query_count
        and sample_count >= settings.min_sample_count,
        perf_constraints_met=not perf_advice,
        early_stopping=_early_stopping(settings, measured.queries_issued, bounded, queries),
        perf_advice=perf_advice,
        duration_advice="" if duration_met else _DURATION_ADVICE[scenario],
    )


_DURATION_ADVICE = {
    TestScenario.SingleStream: "Decrease the expected latency so the loadgen pre-generates more queries.",
    TestScenario.MultiStream: "Decrease the expected latency so the loadgen pre-generates more queries.",
    TestScenario.Server: "Increase the target QPS so the loadgen pre-generates more queries.",
    TestScenario.Offline: "Increase expected QPS so the loadgen pre-generates a larger (coalesced) query.",
}


def _bounded(
    settings: EffectiveSettings,
    samples: Distribution | None,
    first_token: Distribution | None,
    per_token: Distribution | None,
) -> list[BoundedLatency]:
    requested = settings.requested
    if not requested.use_token_latencies:
        return [BoundedLatency("latency", samples, settings.target_latency_ns)]
    return [
        BoundedLatency("time to first token", first_token, requested.ttft_latency),
        BoundedLatency("time per output token", per_token, requested.tpot_latency),
    ]


_MISSED = {
    "latency": "",
    "time to first token": "TTFT constrain not met: ",
    "time per output token": "TPOT constrain not met: ",
}


def _performance_advice(scenario: TestScenario, bounded: list[BoundedLatency]) -> str:
    """Empty if the latency bounds are met; only Server has any."""
    if scenario != TestScenario.Server:
        return ""
    return "\n * ".join(
        f"{_MISSED[name]}Reduce target QPS to improve latency."
        for name, latencies, bound_ns in bounded
        if latencies is not None and latencies.target > bound_ns
    )


def _early_stopping(
    settings: EffectiveSettings, count: int, bounded: list[BoundedLatency], queries: Distribution | None
) -> EarlyStopping:
    """With tokens both kinds of latency are judged, and first tokens only if the other passed."""
    if settings.scenario == TestScenario.Offline:
        return EarlyStopping(True, ("",) * len(bounded))
    results: list[EarlyStopping] = []
    for _, latencies, bound_ns in reversed(bounded):
        if settings.scenario == TestScenario.MultiStream:
            latencies = queries
        values = latencies.values if latencies is not None else np.empty(0, np.int64)
        if settings.scenario == TestScenario.Server:
            results.append(_enough_in_time(settings, count, int(np.count_nonzero(values > bound_ns))))
        else:
            results.append(_estimates(settings, count, values))
        if not results[-1].met:
            break
    texts = [result.texts[0] for result in results] + [""] * (len(bounded) - len(results))
    return dataclasses.replace(results[-1], texts=tuple(reversed(texts)))


def _enough_in_time(settings: EffectiveSettings, count: int, slow: int) -> EarlyStopping:
    """Server: whether so few `slow` ones among `count` queries prove the percentile."""
    missing = fast_queries_needed(slow, settings.target_latency_percentile) + slow - count
    if missing <= 0:
        return EarlyStopping(True, (" * Run successful.",))
    text = (
        f" * Run unsuccessful.\n * Processed {count} queries.\n * Would need to run at least {missing} "
        "more queries,\n with the run being successful if every additional\n query were under latency."
    )
    return EarlyStopping(False, (text,), queries_missing=missing)


def _estimates(settings: EffectiveSettings, count: int, latencies: np.ndarray) -> EarlyStopping:
    """SingleStream and MultiStream: what percentiles are at most, from sorted `latencies` of `count` queries."""
    percentile = settings.target_latency_percentile
    needed = fast_queries_needed(1, percentile) + 1
    if count < needed or len(latencies) < count:
        text = (
            f" * Only processed {count} queries.\n"
            f" * Need to process at least {needed} queries for early stopping."
        )
        return EarlyStopping(False, (text,), queries_missing=max(needed - count, 0))
    slow = slow_queries_allowed(count, percentile)
    estimate = int(latencies[count - slow])
    text = (
        f" * Processed at least {needed} queries ({count}).\n"
        f" * Would discard {slow - 1} highest latency queries.\n"
        f" * Early stopping {percentile * 100:.1f}th percentile estimate: {estimate}"
    )
    if settings.scenario == TestScenario.MultiStream:
        return EarlyStopping(True, (text,), multi_stream_ns=estimate)

    multi_stream_ns = 0
    share = f"{_MULTI_STREAM_PERCENTILE * 100:.1f}th percentile"
    needed = fast_queries_needed(1, _MULTI_STREAM_PERCENTILE) + 1
    if count < needed:
        text += (
            f"\n * Not enough queries processed for {share}\n"
            f" early stopping estimate (would need to process at\n least {needed} total queries)."
        )
    else:
        multi_stream_ns = int(latencies[count - slow_queries_allowed(count, _MULTI_STREAM_PERCENTILE)])
        text += f"\n * Early stopping {share} estimate: {multi_stream_ns}"
    return EarlyStopping(True, (text,), estimate, multi_stream_ns)
