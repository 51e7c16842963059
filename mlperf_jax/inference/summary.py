"""What people see at the end of an inference command."""

from __future__ import annotations

from collections.abc import Mapping

from loadgen_py import TestScenario
from mlperf_jax.inference.measure import Measurement
from mlperf_jax.inference.settings import in_flags

_MS = 1e6


def lines(measured: Measurement) -> list[str]:
    """A paragraph on one run."""
    result = measured.result
    verdict = "VALID" if result.valid else "INTERRUPTED" if result.interrupted else "INVALID"
    head = f"{measured.scenario} {measured.kind}: {verdict}"
    told = [head + _headline(measured)]
    if result.metrics:
        told += _figures(measured)
    if measured.beside:
        each = (f"p{n} {measured.beside[f'endpoints_tpot_{n}_ns'] / _MS:.3f} ms" for n in (50, 90, 99))
        told.append(f"  as mlcommons/endpoints has it, for each other token of text {', '.join(each)}")
    told += [f"  {in_flags(reason)}" for reason in result.reasons]
    for goal in measured.goals:
        figure = (measured.figures or {})[goal.name]
        word = "reached" if goal.reached(figure) else "NOT REACHED"
        told.append(f"  {goal.metric} {figure:.4f}, target {goal.target:.4f}: {word}")
    if "gen_len" in (figures := measured.figures or {}):
        told.append(
            f"  answers: {figures['gen_len']:,.0f} characters, {figures['tokens_per_sample']:.2f} tokens each"
        )
    for found in measured.verdicts:
        told.append(f"  {measured.kind}: {'; '.join(found.lines)}")
    if measured.batches:
        told.append(f"  batches: {_batches(measured.batches)}")
    told.append(f"  logs: {measured.folder}")
    return told


def _headline(measured: Measurement) -> str:
    metrics = measured.result.metrics
    if not metrics:
        return ""
    settings, share = measured.settings, 100 * measured.settings.server_target_latency_percentile
    match TestScenario[measured.result.scenario]:
        case TestScenario.SingleStream:
            told = f", early-stopping p90 {metrics['early_stopping_latency_ss'] / _MS:.3f} ms"
            return told + " to the first token" * settings.use_token_latencies
        case TestScenario.MultiStream:
            return f", early-stopping p99 {metrics['early_stopping_latency_ms'] / _MS:.3f} ms a query"
        case TestScenario.Server if settings.use_token_latencies:
            return (
                f", {metrics['result_completed_tokens_per_second']:,.1f} tokens/s with p{share:g} "
                f"{metrics[f'result_first_token_{share:.2f}_percentile_latency_ns'] / _MS:.3f} ms to the first "
                f"(bound {settings.ttft_latency / _MS:g} ms) and "
                f"{metrics[f'result_time_per_output_token_{share:.2f}_percentile_ns'] / _MS:.3f} ms for each other "
                f"(bound {settings.tpot_latency / _MS:g} ms)"
            )
        case TestScenario.Server:
            bound = settings.server_target_latency_ns / _MS
            latency = metrics[f"result_{share:.2f}_percentile_latency_ns"] / _MS
            return (
                f", {metrics['result_completed_samples_per_sec']:,.1f} samples/s "
                f"with p{share:g} {latency:.3f} ms (bound {bound:g} ms)"
            )
        case TestScenario.Offline if settings.use_token_latencies:
            return f", {metrics['result_tokens_per_second']:,.1f} tokens/s"
        case TestScenario.Offline:
            return f", {metrics['result_samples_per_second']:,.1f} samples/s"


def _figures(measured: Measurement) -> list[str]:
    metrics = measured.result.metrics
    told = f"  {metrics['result_query_count']:,} queries"
    if TestScenario[measured.result.scenario] != TestScenario.Offline:
        name = "result_{}_percentile_latency_ns"
        if measured.result.scenario == "MultiStream":
            name = "result_{}_percentile_per_query_latency_ns"
        shares = ("50.00", "90.00", "99.00")
        told += ", latency " + ", ".join(f"p{s[:2]} {metrics[name.format(s)] / _MS:.3f} ms" for s in shares)
    return [told]


def _batches(batches: Mapping[int, int]) -> str:
    count = sum(batches.values())
    samples = sum(size * n for size, n in batches.items())
    return f"{count:,}, {samples / count:.1f} samples on average, at most {max(batches)}"
