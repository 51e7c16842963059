"""What LoadGen is asked for: the official defaults of a benchmark, what the user said, what the system does."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import psutil
from ml_collections import ConfigDict

from loadgen_py import Reason, TestMode, TestScenario, TestSettings, conf
from loadgen_py.early_stopping import fast_queries_needed
from mlperf_jax.errors import UserError

SCENARIOS = tuple(scenario.name for scenario in TestScenario)

INTERACTIVE = "Interactive"
"""Server under tighter bounds on the latencies of tokens: LoadGen knows it by the name of the model."""

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
_SAMPLE_BYTES = 100  # that LoadGen holds of each sample: which it is, when it is due, asked for and answered


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


class Timing(NamedTuple):
    """How fast one replica is with the samples of one bucket.

    Attributes:
        share: of all samples.
        seconds: samples in a batch, on average where they have several rows -> what a call takes.
    """

    share: float
    seconds: Mapping[float, float]

    @property
    def fastest(self) -> float:
        """What the fastest call takes."""
        return min(self.seconds.values())


def ladder(numbers: Mapping[str, Any], bucket: str) -> Sequence[int]:
    """The batch sizes of a bucket that `numbers`, of a config's `inference`, name: for all buckets, or for each."""
    sizes = numbers["batch_sizes"]
    return sizes[bucket] if isinstance(sizes, ConfigDict) else sizes


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
    timings: Sequence[Timing],
    replicas: int,
) -> TestSettings:
    """Settings for one run.

    Args:
        scenario, mode: what to measure.
        config: the workload's `inference` numbers; with `max_latency_s`, Server's bound is that and not LoadGen's;
            with `latency_share`, so many of its queries must keep to it.
        asked: what the user said.
        timings: of each bucket.
        replicas: how many there are.

    Raises:
        UserError: memory would not hold so many queries.
    """
    settings = defaults(config["loadgen_model"], scenario)
    settings.mode = mode
    settings.performance_sample_count_override = 0  # the library says it, never more than it has
    settings.min_duration_ms = round(1000 * (asked.duration_s or config["min_duration_s"]))
    settings.sut_timeout_ms = round(1000 * config["sut_timeout_s"])
    if bound_s := asked.max_latency_s or config.get("max_latency_s"):
        settings.server_target_latency_ns = round(1e9 * bound_s)
    if share := config.get("latency_share"):
        settings.server_target_latency_percentile = share
    _expect(settings, timings, replicas)
    if asked.qps:
        settings.server_target_qps = asked.qps
    if scenario == TestScenario.Offline:
        if asked.duration_s and asked.duration_s < config["min_duration_s"]:
            settings.min_query_count = 1  # a trial, by its time: the official count can take minutes
        settings.offline_warmup_ms = min(round(_WARMUP_SHARE * settings.min_duration_ms), _MOST_WARMUP_MS)
    if scenario != TestScenario.Offline:
        settings.min_query_count = max(settings.min_query_count, _enough_evidence(settings))
    _require_room(settings, asked)
    if mode == TestMode.FindPeakPerformance:
        bounds_ms = _BOUNDS_IN_A_PROBE * settings.server_target_latency_ns // 1_000_000
        settings.min_duration_ms = max(min(settings.min_duration_ms, _MOST_PROBE_MS), bounds_ms)
        settings.server_find_peak_early_stopping = True
        settings.server_find_peak_relative_precision = _PEAK_PRECISION
    return settings


def in_flags(reason: Reason) -> str:
    """What LoadGen says of a condition that was missed, with advice in terms of the command's own flags."""
    missed = re.split(r" Try | Raise or remove ", reason.text)[0]
    advice = [_advice(name, value) for name, value in reason.try_next.items()]
    return " ".join([missed, *dict.fromkeys(advice)])


def _advice(name: str, value: float) -> str:
    if name == "server_target_qps":
        return f"Try --qps={value:g}."
    if name == "min_duration_ms":
        return f"Try --time={math.ceil(value / 1000)}."
    if name == "min_query_count":
        return "Try a longer --time."
    return "The run's size follows from calls that were timed before it; repeat the command when the machine is quiet."


def require_room(config: Mapping[str, Any], asked: Asked) -> None:
    """Looks at what the user asked for before anything is measured.

    Raises:
        UserError: memory would not hold so many queries.
    """
    seconds = asked.duration_s or config["min_duration_s"]
    _require_held(seconds * (asked.qps or 0), f"--qps={asked.qps:g} for {seconds:g} s" if asked.qps else "")


def _require_room(settings: TestSettings, asked: Asked) -> None:
    """As `require_room`, by the rates that were measured."""
    rate = {
        TestScenario.SingleStream: 1e9 / settings.single_stream_expected_latency_ns,
        TestScenario.MultiStream: settings.multi_stream_samples_per_query
        * 1e9
        / settings.multi_stream_expected_latency_ns,
        TestScenario.Server: settings.server_target_qps,
        TestScenario.Offline: settings.offline_expected_qps,
    }[settings.scenario]
    seconds = settings.min_duration_ms / 1000
    what = f"{settings.scenario.name} of {seconds:g} s at the measured {rate:,.0f} samples/s"
    if settings.scenario == TestScenario.Server and asked.qps:
        what = f"--qps={rate:g} for {seconds:g} s"
    _require_held(seconds * rate, what)


def _require_held(samples: float, what: str) -> None:
    there = psutil.virtual_memory().available
    if samples * _SAMPLE_BYTES > there:
        raise UserError(
            f"{what} asks for {samples:,.0f} samples, and the memory here holds the records of about "
            f"{there // _SAMPLE_BYTES:,}; give a lower --qps or a shorter --time."
        )


def capacity(timings: Sequence[Timing], replicas: int) -> float:
    """Samples/s of all replicas, each bucket at its best batch size."""
    return replicas / _mean(timings, lambda seconds: min(taken / size for size, taken in seconds.items()))


def _mean(timings: Sequence[Timing], of: Callable[[Mapping[float, float]], float]) -> float:
    """Over all samples."""
    return sum(timing.share * of(timing.seconds) for timing in timings)


def _expect(settings: TestSettings, timings: Sequence[Timing], replicas: int) -> None:
    """Fills in what the user of the official package has to guess."""
    share = -(-settings.multi_stream_samples_per_query // replicas)

    def query(seconds: Mapping[float, float]) -> float:
        size = min((size for size in seconds if size >= share), default=max(seconds))
        return seconds[size] * math.ceil(share / size)

    alone = _mean(timings, lambda seconds: seconds[min(seconds)])
    settings.single_stream_expected_latency_ns = _SAFELY_FASTER * 1e9 * alone
    settings.multi_stream_expected_latency_ns = _SAFELY_FASTER * 1e9 * _mean(timings, query)
    settings.offline_expected_qps = capacity(timings, replicas)
    settings.server_target_qps = max(_FIRST_PROBE_SHARE * capacity(timings, replicas), 1.0)


def _enough_evidence(settings: TestSettings) -> int:
    """The number of queries with which early stopping forgives a few slow ones."""
    percentile = {
        TestScenario.SingleStream: settings.single_stream_target_latency_percentile,
        TestScenario.MultiStream: settings.multi_stream_target_latency_percentile,
        TestScenario.Server: settings.server_target_latency_percentile,
    }[settings.scenario]
    slow = _SLOW_QUERIES if settings.scenario == TestScenario.Server else 1
    return fast_queries_needed(slow, percentile) + slow
