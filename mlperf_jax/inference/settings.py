"""What LoadGen is asked for: the official defaults of a benchmark, what the user said, what the system does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from loadgen_py import TestMode, TestScenario, TestSettings, conf
from loadgen_py.early_stopping import fast_queries_needed

SCENARIOS = tuple(scenario.name for scenario in TestScenario)

MODES = {
    "performance": TestMode.PerformanceOnly,
    "accuracy": TestMode.AccuracyOnly,
    "submission": TestMode.SubmissionRun,
    "find_peak": TestMode.FindPeakPerformance,
}

# A first latency that is a little too low, or a rate too high, only makes LoadGen prepare more queries.
_SAFELY_FASTER = 0.6
# A run with so many slow queries can still be VALID: on a shared machine some always are.
_SLOW_QUERIES = 3
_WARMUP_SHARE, _MOST_WARMUP_MS = 0.2, 2000
_MOST_PROBE_MS = 2000
# In a shorter probe even a system that falls behind would answer everything within the bound.
_BOUNDS_IN_A_PROBE = 10
_FIRST_PROBE_SHARE = 0.1
_PEAK_PRECISION = 0.05


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the user asked for; None leaves a number to the official defaults or to measurement.

    Attributes:
        duration_s: at least so long.
        qps: the rate of Server.
        max_latency_s: Server's bound.
    """

    duration_s: float | None = None
    qps: float | None = None
    max_latency_s: float | None = None


def defaults(model: str, scenario: TestScenario) -> TestSettings:
    """The official settings of a benchmark, under LoadGen's name of it."""
    settings = TestSettings(scenario=scenario)
    settings.FromConfig("", model, scenario.name, conf.BUILT_IN)
    return settings


def make_settings(
    scenario: TestScenario,
    mode: TestMode,
    config: Mapping[str, Any],
    asked: Asked,
    seconds: Mapping[int, float],
    replicas: int,
) -> TestSettings:
    """Settings for one run.

    Args:
        scenario, mode: what to measure.
        config: the workload's `inference` numbers; with `max_latency_s`, Server's bound is that and not LoadGen's.
        asked: what the user said.
        seconds: batch size -> what a call of one replica takes.
        replicas: how many there are.
    """
    settings = defaults(config["loadgen_model"], scenario)
    settings.mode = mode
    settings.performance_sample_count_override = 0  # the library says it, never more than it has
    settings.min_duration_ms = round(1000 * (asked.duration_s or config["min_duration_s"]))
    settings.sut_timeout_ms = round(1000 * config["sut_timeout_s"])
    if bound_s := asked.max_latency_s or config.get("max_latency_s"):
        settings.server_target_latency_ns = round(1e9 * bound_s)
    _expect(settings, seconds, replicas)
    if asked.qps:
        settings.server_target_qps = asked.qps
    if scenario == TestScenario.Offline:
        settings.offline_warmup_ms = min(round(_WARMUP_SHARE * settings.min_duration_ms), _MOST_WARMUP_MS)
    if scenario != TestScenario.Offline:
        settings.min_query_count = max(settings.min_query_count, _enough_evidence(settings))
    if mode == TestMode.FindPeakPerformance:
        bounds_ms = _BOUNDS_IN_A_PROBE * settings.server_target_latency_ns // 1_000_000
        settings.min_duration_ms = max(min(settings.min_duration_ms, _MOST_PROBE_MS), bounds_ms)
        settings.server_find_peak_early_stopping = True
        settings.server_find_peak_relative_precision = _PEAK_PRECISION
    return settings


def capacity(seconds: Mapping[int, float], replicas: int) -> float:
    """Samples/s of all replicas at the best batch size."""
    return replicas * max(size / taken for size, taken in seconds.items())


def _expect(settings: TestSettings, seconds: Mapping[int, float], replicas: int) -> None:
    """Fills in what the user of the official package has to guess."""
    share = -(-settings.multi_stream_samples_per_query // replicas)
    size = min((size for size in seconds if size >= share), default=max(seconds))
    calls = -(-share // size)
    settings.single_stream_expected_latency_ns = _SAFELY_FASTER * 1e9 * seconds[min(seconds)]
    settings.multi_stream_expected_latency_ns = _SAFELY_FASTER * 1e9 * seconds[size] * calls
    settings.offline_expected_qps = capacity(seconds, replicas)
    settings.server_target_qps = max(_FIRST_PROBE_SHARE * capacity(seconds, replicas), 1.0)


def _enough_evidence(settings: TestSettings) -> int:
    """The number of queries with which early stopping forgives a few slow ones."""
    percentile = {
        TestScenario.SingleStream: settings.single_stream_target_latency_percentile,
        TestScenario.MultiStream: settings.multi_stream_target_latency_percentile,
        TestScenario.Server: settings.server_target_latency_percentile,
    }[settings.scenario]
    slow = _SLOW_QUERIES if settings.scenario == TestScenario.Server else 1
    return fast_queries_needed(slow, percentile) + slow
