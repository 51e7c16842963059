"""From the times of a phase to its figures and to the verdict VALID or INVALID.

All latencies are whole nanoseconds. The figures, their rounding and the conditions are the
official ones (`results.cc`): a percentile is the sorted latency at position trunc(n * p),
means are integer divisions.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from loadgen_py.early_stopping import fast_queries_needed, slow_queries_allowed
from loadgen_py.issue import Phase
from loadgen_py.responses import MISSING_TOKENS, Responses
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
class Verdict:
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
    size, issued = queries.samples_per_query, responses.issued
    count = phase.queries_issued
    done = np.frombuffer(responses.done, np.int64)[:issued]
    issued_at = np.frombuffer(phase.issued_at, np.int64)[:count]
    if scenario == TestScenario.Server:
        scheduled = queries.due_ns[:issued] + phase.start_ns
    elif scenario == TestScenario.Offline:
        scheduled = np.full(issued, phase.start_ns, np.int64)
    else:
        scheduled = np.repeat(issued_at, size)
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
        final_scheduled_s=int(queries.due_ns[count - 1]) / 1e9
        if scenario == TestScenario.Server and count
        else 0.0,
        final_issued_s=int(issued_at[-1] - phase.start_ns) / 1e9 if count else 0.0,
        final_done_s=(last_done - phase.start_ns) / 1e9,
        query_latencies=query_latencies,
        **tokens,
    )


def _token_measurements(
    responses: Responses, scheduled: np.ndarray, answered: np.ndarray, latencies: np.ndarray
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


def judge(settings: EffectiveSettings, measured: Measurement) -> Verdict:
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
    perf_advice = _performance_advice(settings, samples, first_token, per_token)
    return Verdict(
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
        early_stopping=_early_stopping(settings, measured, samples, queries, first_token, per_token),
        perf_advice=perf_advice,
        duration_advice="" if duration_met else _DURATION_ADVICE[scenario],
    )


_DURATION_ADVICE = {
    TestScenario.SingleStream: "Decrease the expected latency so the loadgen pre-generates more queries.",
    TestScenario.MultiStream: "Decrease the expected latency so the loadgen pre-generates more queries.",
    TestScenario.Server: "Increase the target QPS so the loadgen pre-generates more queries.",
    TestScenario.Offline: "Increase expected QPS so the loadgen pre-generates a larger (coalesced) query.",
}


def _performance_advice(
    settings: EffectiveSettings,
    samples: Distribution | None,
    first_token: Distribution | None,
    per_token: Distribution | None,
) -> str:
    """Empty if the latency bounds are met; only Server has any."""
    if settings.scenario != TestScenario.Server:
        return ""
    requested = settings.requested
    if not requested.use_token_latencies:
        slow = samples is not None and samples.target > settings.target_latency_ns
        return "Reduce target QPS to improve latency." if slow else ""
    advice = []
    if first_token is not None and first_token.target > requested.ttft_latency:
        advice.append("TTFT constrain not met: Reduce target QPS to improve latency.")
    if per_token is not None and per_token.target > requested.tpot_latency:
        advice.append("TPOT constrain not met: Reduce target QPS to improve latency.")
    return "\n * ".join(advice)


def _early_stopping(
    settings: EffectiveSettings,
    measured: Measurement,
    samples: Distribution | None,
    queries: Distribution | None,
    first_token: Distribution | None,
    per_token: Distribution | None,
) -> EarlyStopping:
    """With tokens both kinds of latency are judged, and first tokens only if the other passed."""
    requested = settings.requested
    judged = [(samples, settings.target_latency_ns)]
    if requested.use_token_latencies:
        judged = [(per_token, requested.tpot_latency), (first_token, requested.ttft_latency)]
    if settings.scenario == TestScenario.Offline:
        return EarlyStopping(True, ("",) * len(judged))
    results = []
    for latencies, bound_ns in judged:
        if settings.scenario == TestScenario.MultiStream:
            latencies = queries
        results.append(_evidence(settings, measured.queries_issued, latencies, bound_ns))
        if not results[-1].met:
            break
    texts = [result.texts[0] for result in results] + [""] * (len(judged) - len(results))
    return dataclasses.replace(results[-1], texts=tuple(reversed(texts)))


def _evidence(
    settings: EffectiveSettings, count: int, latencies: Distribution | None, bound_ns: int
) -> EarlyStopping:
    percentile = settings.target_latency_percentile
    values = latencies.values if latencies is not None else np.empty(0, np.int64)
    if settings.scenario == TestScenario.Server:
        slow = int(np.count_nonzero(values > bound_ns))
        missing = fast_queries_needed(slow, percentile) + slow - count
        if missing <= 0:
            return EarlyStopping(True, (" * Run successful.",))
        text = (
            f" * Run unsuccessful.\n * Processed {count} queries.\n * Would need to run at least {missing} "
            "more queries,\n with the run being successful if every additional\n query were under latency."
        )
        return EarlyStopping(False, (text,), queries_missing=missing)

    needed = fast_queries_needed(1, percentile) + 1
    if count < needed or len(values) < count:
        text = (
            f" * Only processed {count} queries.\n"
            f" * Need to process at least {needed} queries for early stopping."
        )
        return EarlyStopping(False, (text,), queries_missing=max(needed - count, 0))
    slow = slow_queries_allowed(count, percentile)
    estimate = int(values[count - slow])
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
        multi_stream_ns = int(values[count - slow_queries_allowed(count, _MULTI_STREAM_PERCENTILE)])
        text += f"\n * Early stopping {share} estimate: {multi_stream_ns}"
    return EarlyStopping(True, (text,), estimate, multi_stream_ns)
