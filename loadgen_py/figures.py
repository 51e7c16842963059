"""The fields of the official logs, by their official names and in their order."""

from __future__ import annotations

import math

from loadgen_py.settings import EffectiveSettings, TestScenario, TestSettings
from loadgen_py.statistics import PERCENTILES, Distribution, PerformanceVerdict

Value = bool | int | float | str
_RULE = "================================================"

_SCENARIO_FIELDS = {
    TestScenario.SingleStream: (
        "single_stream_expected_latency_ns",
        "single_stream_target_latency_percentile",
    ),
    TestScenario.MultiStream: (
        "multi_stream_expected_latency_ns",
        "multi_stream_target_latency_percentile",
        "multi_stream_samples_per_query",
    ),
    TestScenario.Server: (
        "server_target_qps",
        "server_target_latency_ns",
        "server_target_latency_percentile",
        "server_coalesce_queries",
        "server_find_peak_qps_decimals_of_precision",
        "server_find_peak_qps_boundary_step_size",
        "server_max_async_queries",
        "server_num_issue_query_threads",
    ),
    TestScenario.Offline: ("offline_expected_qps",),
}
_TAKEN_OVER = (  # by a run as they are
    "qsl_rng_seed",
    "sample_index_rng_seed",
    "schedule_rng_seed",
    "accuracy_log_rng_seed",
    "accuracy_log_probability",
    "accuracy_log_sampling_target",
    "print_timestamps",
    "performance_issue_unique",
    "performance_issue_same",
    "performance_issue_same_index",
)
_COMMON_FIELDS = (
    "min_duration_ms",
    "max_duration_ms",
    "min_query_count",
    "max_query_count",
    *_TAKEN_OVER,
    "performance_sample_count_override",
    "accuracy_sample_count_override",
    "sample_concatenate_permutation",
)
_OWN_FIELDS = (
    "sut_timeout_ms",
    "offline_warmup_ms",
    "offline_enforce_max_duration",
    "server_find_peak_early_stopping",
    "server_find_peak_relative_precision",
)


def _ratio(numerator: float, denominator: float) -> float:
    """A quotient as C++ gives it: infinite or not a number instead of an error."""
    if denominator:
        return numerator / denominator
    return math.copysign(math.inf, numerator) if numerator else math.nan


def requested_fields(settings: TestSettings) -> dict[str, Value]:
    """`requested_*`: what the user asked for, and our own settings where they are not at their default."""
    fields: dict[str, Value] = {
        "requested_scenario": settings.scenario.name,
        "requested_test_mode": settings.mode.name,
    }
    for name in _SCENARIO_FIELDS[settings.scenario] + _COMMON_FIELDS:
        fields[f"requested_{name}"] = getattr(settings, name)
    if settings.use_token_latencies:
        fields["requested_use_token_latencies"] = True
        if settings.scenario != TestScenario.Offline:
            fields["requested_server_ttft_latency"] = settings.ttft_latency
            fields["requested_server_tpot_latency"] = settings.tpot_latency
    for name in _OWN_FIELDS:
        if getattr(settings, name):
            fields[f"requested_{name}"] = getattr(settings, name)
    return fields


def effective_fields(settings: EffectiveSettings) -> dict[str, Value]:
    """`effective_*`: what the run uses."""
    requested = settings.requested
    fields: dict[str, Value] = {
        "scenario": settings.scenario.name,
        "test_mode": settings.mode.name,
        "samples_per_query": settings.samples_per_query,
        "target_qps": settings.target_qps,
        "target_latency_ns": settings.target_latency_ns,
        "target_latency_percentile": settings.target_latency_percentile,
        "max_async_queries": settings.max_async_queries,
        "target_duration_ms": settings.target_duration_ns // 1_000_000,
        "min_duration_ms": requested.min_duration_ms,
        "max_duration_ms": requested.max_duration_ms,
        "min_query_count": settings.min_query_count,
        "max_query_count": requested.max_query_count,
        "min_sample_count": settings.min_sample_count,
    }
    for name in _TAKEN_OVER:
        fields[name] = getattr(requested, name)
    fields["performance_sample_count"] = settings.performance_sample_count
    fields["accuracy_sample_count"] = settings.accuracy_sample_count
    fields["sample_concatenate_permutation"] = requested.sample_concatenate_permutation
    return {f"effective_{name}": value for name, value in fields.items()}


def result_fields(verdict: PerformanceVerdict, valid: bool) -> dict[str, Value]:
    """The results of a performance phase, as in the detail log, from `result_validity` on."""
    stopping = verdict.early_stopping
    fields: dict[str, Value] = {"result_validity": "VALID" if valid else "INVALID"}
    if verdict.settings.scenario == TestScenario.Server:
        fields["result_perf_constraints_met"] = verdict.perf_constraints_met
    fields["result_min_duration_met"] = verdict.min_duration_met
    fields["result_min_queries_met"] = verdict.min_queries_met
    fields["early_stopping_met"] = stopping.met
    if not verdict.valid:
        fields["result_invalid_reason"] = _official_reason(verdict)
    names: tuple[str, ...] = ("early_stopping_result",)
    if verdict.settings.requested.use_token_latencies:
        names = ("early_stopping_ttft_result", "early_stopping_tpot_result")
    for name, text in zip(names, stopping.texts, strict=True):
        fields[name] = text.replace("\n", " ")
    fields["result_query_count"] = verdict.measured.queries_issued if verdict.samples else 0
    return fields | _measured_fields(verdict)


def _measured_fields(verdict: PerformanceVerdict) -> dict[str, float]:
    fields = _scenario_results(verdict)
    fields |= _latencies(verdict.samples, "result_{}_latency_ns", "result_{}_percentile_latency_ns")
    fields |= _token_results(verdict)
    return fields | _inferred_token_results(verdict)


def _official_reason(verdict: PerformanceVerdict) -> str:
    reason = ""
    if not verdict.perf_constraints_met:
        reason += verdict.perf_advice + " "
    if not verdict.min_duration_met:
        reason += verdict.duration_advice + " "
    if not verdict.min_queries_met:
        reason += "The test exited early, before enough queries were issued."
    return reason.replace("\n", " ")


def _latencies(spread: Distribution | None, extreme: str, percentile: str) -> dict[str, float]:
    fields: dict[str, float] = {
        extreme.format("min"): spread.minimum if spread else 0,
        extreme.format("max"): spread.maximum if spread else 0,
        extreme.format("mean"): spread.mean if spread else 0,
    }
    for k, share in enumerate(PERCENTILES):
        fields[percentile.format(f"{share * 100:.2f}")] = spread.at[k] if spread else 0
    return fields


def _scenario_results(verdict: PerformanceVerdict) -> dict[str, float]:
    measured, stopping = verdict.measured, verdict.early_stopping
    match verdict.settings.scenario:
        case TestScenario.SingleStream:
            mean_s = verdict.samples.mean / 1e9 if verdict.samples else 0.0
            return {
                "result_qps_with_loadgen_overhead": _ratio(verdict.sample_count - 1, measured.final_issued_s),
                "result_qps_without_loadgen_overhead": _ratio(1, mean_s),
                "early_stopping_latency_ss": stopping.single_stream_ns,
                "early_stopping_latency_ms": stopping.multi_stream_ns,
            }
        case TestScenario.MultiStream:
            fields = _latencies(
                verdict.queries, "result_{}_query_latency_ns", "result_{}_percentile_per_query_latency_ns"
            )
            return fields | {"early_stopping_latency_ms": stopping.multi_stream_ns}
        case TestScenario.Server:
            return {
                "result_overlatency_query_count": verdict.overlatency_count,
                "result_scheduled_samples_per_sec": _ratio(
                    verdict.sample_count - 1, measured.final_scheduled_s
                ),
                "result_completed_samples_per_sec": _ratio(verdict.sample_count - 1, measured.final_done_s),
            }
        case TestScenario.Offline:
            return {"result_samples_per_second": _ratio(verdict.sample_count, measured.max_latency_s)}


def _token_results(verdict: PerformanceVerdict) -> dict[str, float]:
    settings, measured, tokens = verdict.settings, verdict.measured, verdict.token_count
    if not settings.requested.use_token_latencies:
        return {}
    if settings.scenario == TestScenario.Offline:
        return {"result_tokens_per_second": _ratio(tokens, measured.max_latency_s)}
    mean_ns = verdict.samples.mean if verdict.samples else 0
    fields = _latencies(
        verdict.first_token, "result_first_token_{}_latency_ns", "result_first_token_{}_percentile_latency_ns"
    )
    fields["result_token_throughput_with_loadgen_overhead"] = _ratio(tokens, measured.final_issued_s)
    fields["result_token_throughput"] = _ratio(tokens, mean_ns * verdict.sample_count)
    per_token = _latencies(
        verdict.per_token, "result_time_to_output_token_{}", "result_time_per_output_token_{}_percentile_ns"
    )
    extremes = {name: per_token.pop(name) for name in list(per_token)[:3]}
    fields |= per_token | extremes
    fields["result_completed_tokens_per_second"] = _ratio(tokens, measured.final_done_s)
    return fields


def _inferred_token_results(verdict: PerformanceVerdict) -> dict[str, float]:
    requested, measured = verdict.settings.requested, verdict.measured
    if not requested.infer_token_latencies:
        return {}
    factor = requested.token_latency_scaling_factor
    if requested.scenario == TestScenario.Server:
        rate = _ratio((verdict.sample_count - 1) * factor, measured.final_done_s)
        return {"result_inferred_completed_tokens_per_second": rate}
    if requested.scenario == TestScenario.Offline:
        rate = _ratio(verdict.sample_count * factor, measured.max_latency_s)
        return {"result_inferred_tokens_per_second": rate}
    return {}


def number_text(value: float, digits: int = 6) -> str:
    """A number as C++ streams print it with so many significant digits (`%g`) ."""
    return f"{value:.{digits}g}"


def summary_lines(verdict: PerformanceVerdict, valid: bool, sut_name: str) -> list[str]:
    """The summary for people, in the official words and order."""
    settings, fields = verdict.settings, _measured_fields(verdict)
    lines = [_RULE, "MLPerf Results Summary", _RULE, f"SUT name : {sut_name}"]
    lines += [f"Scenario : {settings.scenario.name}", f"Mode     : {settings.mode.name}"]
    lines += _headline(verdict, fields)
    lines += _condition_lines(verdict, valid)
    lines += ["", _RULE, "Additional Stats", _RULE]
    lines += _additional_stats(verdict, fields)
    lines += ["", _RULE, "Test Parameters Used", _RULE]
    return lines + _parameter_lines(settings)


def _condition_lines(verdict: PerformanceVerdict, valid: bool) -> list[str]:
    settings, stopping = verdict.settings, verdict.early_stopping
    lines = [f"Result is : {'VALID' if valid else 'INVALID'}"]
    if settings.scenario == TestScenario.Server:
        lines.append(f"  Performance constraints satisfied : {_yes(verdict.perf_constraints_met)}")
    lines.append(f"  Min duration satisfied : {_yes(verdict.min_duration_met)}")
    lines.append(f"  Min queries satisfied : {_yes(verdict.min_queries_met)}")
    lines.append(f"  Early stopping satisfied: {_yes(stopping.met)}")
    if not verdict.valid:
        lines.append("Recommendations:")
        if not verdict.perf_constraints_met:
            lines.append(f" * {verdict.perf_advice}")
        if not verdict.min_duration_met:
            lines.append(f" * {verdict.duration_advice}")
        if not verdict.min_queries_met:
            lines.append(
                " * The test exited early, before enough queries were issued.\n"
                "   See the detailed log for why this may have occurred."
            )
    if settings.scenario != TestScenario.Offline:
        titles = ["TTFT Early Stopping Result:", "TPOT Early Stopping Result:"]
        if not settings.requested.use_token_latencies:
            titles = ["Early Stopping Result:"]
        for title, text in zip(titles, stopping.texts, strict=True):
            lines += [title, text]
    return lines


def _yes(met: bool) -> str:
    return "Yes" if met else "NO"


def _headline(verdict: PerformanceVerdict, fields: dict[str, float]) -> list[str]:
    settings = verdict.settings
    percentile = f"{settings.target_latency_percentile * 100:.1f}th"
    lines = []
    match settings.scenario:
        case TestScenario.SingleStream | TestScenario.MultiStream:
            spread = verdict.queries if settings.scenario == TestScenario.MultiStream else verdict.samples
            lines.append(f"{percentile} percentile latency (ns) : {spread.target if spread else 0}")
            if settings.requested.use_token_latencies:
                first = verdict.first_token.target if verdict.first_token else 0
                lines.append(f"{percentile} first token percentile latency (ns) : {first}")
        case TestScenario.Server:
            rate = fields["result_completed_samples_per_sec"]
            lines.append(f"Completed samples per second    : {rate:.2f}")
            if settings.requested.use_token_latencies:
                rate = _ratio(verdict.token_count, verdict.measured.final_done_s)
                lines.append(f"Completed tokens per second: {rate:.2f}")
            if settings.requested.infer_token_latencies:
                rate = fields["result_inferred_completed_tokens_per_second"]
                lines.append(f"Completed tokens per second (inferred): {rate:.2f}")
        case TestScenario.Offline:
            lines.append(f"Samples per second: {number_text(fields['result_samples_per_second'])}")
            if settings.requested.use_token_latencies:
                lines.append(f"Tokens per second: {number_text(fields['result_tokens_per_second'])}")
            if settings.requested.infer_token_latencies:
                inferred = number_text(fields["result_inferred_tokens_per_second"])
                lines.append(f"Tokens per second (inferred): {inferred}")
    return lines


def _spread_lines(spread: Distribution | None, what: str, percentile: str, width: int) -> list[str]:
    lines = [
        f"{f'{name} {what}':<{width}}: {getattr(spread, field) if spread else 0}"
        for name, field in (("Min", "minimum"), ("Max", "maximum"), ("Mean", "mean"))
    ]
    for k, share in enumerate(PERCENTILES):
        lines.append(f"{share * 100:.2f} percentile {percentile}   : {spread.at[k] if spread else 0}")
    return lines


def _additional_stats(verdict: PerformanceVerdict, fields: dict[str, float]) -> list[str]:
    scenario = verdict.settings.scenario
    lines: list[str] = []
    if scenario == TestScenario.SingleStream:
        lines.append(f"QPS w/ loadgen overhead         : {fields['result_qps_with_loadgen_overhead']:.2f}")
        lines.append(f"QPS w/o loadgen overhead        : {fields['result_qps_without_loadgen_overhead']:.2f}")
        lines.append("")
    elif scenario == TestScenario.Server:
        lines.append(f"Scheduled samples per second : {fields['result_scheduled_samples_per_sec']:.2f}")
    elif scenario == TestScenario.MultiStream:
        lines.append("Per-query latency:  ")
    spread = verdict.queries if scenario == TestScenario.MultiStream else verdict.samples
    lines += _spread_lines(spread, "latency (ns)", "latency (ns)", 32)
    if verdict.settings.requested.use_token_latencies:
        lines += _token_stats(verdict)
    return lines


def _token_stats(verdict: PerformanceVerdict) -> list[str]:
    scenario, tokens, measured = verdict.settings.scenario, verdict.token_count, verdict.measured
    lines = [""]
    if scenario == TestScenario.SingleStream:
        answering_s = verdict.samples.mean / 1e9 * verdict.sample_count if verdict.samples else 0.0
        lines.append(f"TPS w/ loadgen overhead         : {_ratio(tokens, measured.final_issued_s):.2f}")
        lines.append(f"TPS w/o loadgen overhead        : {_ratio(tokens, answering_s):.2f}")
    elif scenario == TestScenario.Server:
        rate = _ratio(tokens, measured.final_done_s)
        lines.append(f"Completed tokens per second                 : {rate:.2f}")
    if scenario == TestScenario.Offline:
        return lines
    lines += _spread_lines(verdict.first_token, "First Token latency (ns)", "first token latency (ns)", 44)
    lines.append("")
    return lines + _spread_lines(
        verdict.per_token, "Time per Output Token (ns)", "time to output token (ns)", 46
    )


def _parameter_lines(settings: EffectiveSettings) -> list[str]:
    requested = settings.requested
    pairs: list[tuple[str, Value]] = [
        ("samples_per_query", settings.samples_per_query),
        ("target_qps", number_text(settings.target_qps)),
    ]
    if requested.use_token_latencies:
        pairs.append(("ttft_latency (ns)", requested.ttft_latency))
        pairs.append(("tpot_latency (ns)", requested.tpot_latency))
    else:
        pairs.append(("target_latency (ns)", settings.target_latency_ns))
    pairs.append(("max_async_queries", settings.max_async_queries))
    pairs.append(("min_duration (ms)", requested.min_duration_ms))
    pairs.append(("max_duration (ms)", requested.max_duration_ms))
    pairs.append(("min_query_count", settings.min_query_count))
    pairs.append(("max_query_count", requested.max_query_count))
    for name in _TAKEN_OVER:
        value = getattr(requested, name)
        pairs.append((name, number_text(value) if isinstance(value, float) else value))
    pairs.append(("performance_sample_count", settings.performance_sample_count))
    pairs.append(("accuracy_sample_count", settings.accuracy_sample_count))
    lines = []
    for name, value in pairs:
        text = int(value) if isinstance(value, bool) else value
        lines.append(f"{name}: {text}" if name.endswith(")") else f"{name} : {text}")
    if requested.sample_concatenate_permutation:
        lines.append(
            "WARNING: sample_concatenate_permutation was set to true. \n"
            "Generated samples per query might be different as the one in the setting.\n"
            "Check the generated_samples_per_query line in the detailed log for the real\n"
            "samples_per_query value"
        )
    return lines
