"""What a user asks for (`TestSettings`, `LogSettings`) and what a run uses (`EffectiveSettings`).

Names, defaults and meanings are those of the official LoadGen (`test_settings.h`,
`test_settings_internal.cc`). Fields under "beyond the official ones" are off by default,
so that the defaults decide exactly as the official package does.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import ClassVar

from loadgen_py import conf
from loadgen_py.fields import Choice, Int32, TypedFields, as_text
from mlperf_jax.errors import UserError

_NS_PER_MS = 1_000_000


class TestScenario(Choice):
    """How queries arrive."""

    __test__ = False  # not a pytest class
    SingleStream = 0
    MultiStream = 1
    Server = 2
    Offline = 3


class TestMode(Choice):
    """What is measured."""

    __test__ = False
    SubmissionRun = 0
    AccuracyOnly = 1
    PerformanceOnly = 2
    FindPeakPerformance = 3


class LoggingMode(Choice):
    """Kept for scripts that set it: logs are always written at the end of each phase."""

    AsyncPoll = 0
    EndOfTestOnly = 1
    Synchronous = 2


@dataclasses.dataclass(slots=True)
class TestSettings(TypedFields):
    """The settings of one test, all of them writable; `FieldTypeError` for a value of a wrong type.

    Times are in the unit that the name ends with (`ttft_latency` and `tpot_latency` in
    ns); a limit of 0 means no limit.
    """

    __test__: ClassVar[bool] = False

    scenario: TestScenario = TestScenario.SingleStream
    mode: TestMode = TestMode.PerformanceOnly
    single_stream_expected_latency_ns: float = 1_000_000.0
    single_stream_target_latency_percentile: float = 0.90
    multi_stream_expected_latency_ns: float = 8_000_000.0
    multi_stream_target_latency_percentile: float = 0.99
    multi_stream_samples_per_query: int = 8
    server_target_qps: float = 1.0
    server_target_latency_ns: int = 100_000_000
    server_target_latency_percentile: float = 0.99
    server_coalesce_queries: bool = False
    server_find_peak_qps_decimals_of_precision: Int32 = 1
    server_find_peak_qps_boundary_step_size: float = 1.0
    server_max_async_queries: int = 0
    server_num_issue_query_threads: int = 0
    offline_expected_qps: float = 1.0
    sample_concatenate_permutation: bool = False
    min_duration_ms: int = 10_000
    max_duration_ms: int = 0
    min_query_count: int = 100
    max_query_count: int = 0
    qsl_rng_seed: int = 0
    sample_index_rng_seed: int = 0
    schedule_rng_seed: int = 0
    accuracy_log_rng_seed: int = 0
    accuracy_log_probability: float = 0.0
    accuracy_log_sampling_target: int = 0
    test05: bool = False
    test05_qsl_rng_seed: int = 0
    test05_sample_index_rng_seed: int = 0
    test05_schedule_rng_seed: int = 0
    print_timestamps: bool = False
    performance_issue_unique: bool = False
    performance_issue_same: bool = False
    performance_issue_same_index: int = 0
    performance_sample_count_override: int = 0
    accuracy_sample_count_override: int = 0
    use_token_latencies: bool = False
    ttft_latency: int = 100_000_000
    tpot_latency: int = 100_000_000
    infer_token_latencies: bool = False
    token_latency_scaling_factor: int = 0

    # Beyond the official ones.
    sut_timeout_ms: int = 0
    """Longest time without any answer while samples are outstanding, or in one call of the
    system under test, after which the run ends INVALID (0: wait for ever, as officially).
    The queries are then issued from a thread of LoadGen's own."""
    offline_warmup_ms: int = 0
    """Offline performance: issue growing queries for this long first, and size the measured
    query from their rate instead of from `offline_expected_qps`."""
    offline_enforce_max_duration: bool = False
    """Offline performance: issue in parts of `performance_sample_count`, stop at
    `max_duration_ms`, and report the samples answered by then."""
    server_find_peak_early_stopping: bool = False
    """FindPeakPerformance: a rate passes only if early stopping is satisfied too, a probe ends
    as soon as it cannot pass any more, a base rate that fails is lowered until one passes, and a
    rate must fail twice to end the search."""
    server_find_peak_relative_precision: float = 0.0
    """FindPeakPerformance: the search also ends when the bounds are as close as this share."""

    def FromConfig(self, path: str, model: str, scenario: str, conf_type: int = 1) -> int:
        """Takes over what a `user.conf` (`conf_type` 1) says for a model and a scenario.

        The first call in a process reads the official defaults (`mlperf.conf`) before it;
        `conf_type` 0 reads them alone and 2 reads an `audit.config`. Returns 0, or the
        negative errno of a file that cannot be read (-2) or understood (-22).
        """
        before = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        names = (as_text(path), as_text(model), as_text(scenario))
        found, status = conf.read_fields(*names, conf_type, before)
        for name, value in found.items():
            setattr(self, name, TestMode(value) if name == "mode" else value)
        return status


@dataclasses.dataclass(slots=True)
class LogOutputSettings(TypedFields):
    """Where the logs go: `outdir/prefix[datetime_]{summary,detail,...}suffix.{txt,json}`."""

    outdir: str = "."
    prefix: str = "mlperf_log_"
    suffix: str = ""
    prefix_with_datetime: bool = False
    copy_detail_to_stdout: bool = False
    copy_summary_to_stdout: bool = False


@dataclasses.dataclass(slots=True)
class LogSettings(TypedFields):
    """How logs are written; unlike the official default, tracing is off."""

    log_output: LogOutputSettings = dataclasses.field(default_factory=LogOutputSettings)
    log_mode: LoggingMode = LoggingMode.AsyncPoll
    log_mode_async_poll_interval_ms: int = 1000
    enable_trace: bool = False
    max_trace_samples: int = 100_000
    """Beyond the official ones: samples after the first so many are left out of the trace."""


@dataclasses.dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """`TestSettings` in terms of what is issued, with the scenario's own names gone.

    `requested` is a private copy. `problems` are the contradictions found, in the
    official words; they are logged as errors and the run goes on.
    """

    requested: TestSettings
    samples_per_query: int
    target_qps: float
    target_latency_ns: int
    target_latency_percentile: float
    max_async_queries: int
    target_duration_ns: int
    min_query_count: int
    min_sample_count: int
    performance_sample_count: int
    accuracy_sample_count: int
    problems: tuple[str, ...] = ()

    @property
    def scenario(self) -> TestScenario:
        return self.requested.scenario

    @property
    def mode(self) -> TestMode:
        return self.requested.mode

    @property
    def min_duration_ns(self) -> int:
        return self.requested.min_duration_ms * _NS_PER_MS

    @property
    def max_duration_ns(self) -> int:
        return self.requested.max_duration_ms * _NS_PER_MS

    @property
    def accuracy_log_probability(self) -> float:
        """The share of a performance run's samples whose answers are logged."""
        requested = self.requested
        if requested.accuracy_log_sampling_target <= 0:
            return requested.accuracy_log_probability
        expected = int(self.target_qps * requested.min_duration_ms / 1000)
        minimum = self.min_sample_count
        if self.scenario != TestScenario.Offline:
            expected *= self.samples_per_query
            minimum = self.min_query_count * self.samples_per_query
        return requested.accuracy_log_sampling_target / max(expected, minimum)


def resolve(requested: TestSettings, performance_count: int, total_count: int) -> EffectiveSettings:
    """The effective settings for a library of `total_count` samples, `performance_count` in memory.

    Raises `UserError` where the official package would loop for ever or crash.
    """
    requested = copy.copy(requested)
    scenario = requested.scenario
    problems: list[str] = []
    performance_sample_count = requested.performance_sample_count_override or performance_count
    target_qps, percentile, latency_ns, max_async = _scenario_targets(requested, problems)
    _check_usable(requested, target_qps, performance_sample_count, total_count)

    samples_per_query = 1
    min_query_count = requested.min_query_count
    target_duration_ns = requested.min_duration_ms * _NS_PER_MS
    seconds = requested.min_duration_ms / 1000
    if scenario == TestScenario.MultiStream:
        samples_per_query = requested.multi_stream_samples_per_query
    elif scenario == TestScenario.Offline:
        # 10 % more than needed, so that a somewhat faster system still runs long enough.
        samples_per_query = max(min_query_count, int(1.1 * seconds * target_qps))
        if requested.performance_issue_unique:
            samples_per_query = performance_sample_count
        min_query_count, target_duration_ns = 1, 0
    elif scenario == TestScenario.SingleStream and requested.sample_concatenate_permutation:
        # Whole passes over the samples, twice as many as the expected latency calls for.
        min_query_count = max(min_query_count, int(2.0 * seconds * target_qps))
        min_query_count += performance_count - min_query_count % performance_count

    problems += _contradictions(requested, performance_sample_count)
    return EffectiveSettings(
        requested=requested,
        samples_per_query=samples_per_query,
        target_qps=target_qps,
        target_latency_ns=latency_ns,
        target_latency_percentile=percentile,
        max_async_queries=max_async,
        target_duration_ns=target_duration_ns,
        min_query_count=min_query_count,
        min_sample_count=min_query_count * samples_per_query,
        performance_sample_count=performance_sample_count,
        accuracy_sample_count=requested.accuracy_sample_count_override or total_count,
        problems=tuple(problems),
    )


def _contradictions(requested: TestSettings, performance_sample_count: int) -> list[str]:
    problems = []
    same_index = requested.performance_issue_same_index
    if requested.performance_issue_same and same_index >= performance_sample_count:
        problems.append(
            "Sample Idx to be repeated in performance_issue_same mode cannot be greater than loaded "
            f"performance_sample_count. performance_issue_same_index: {same_index} "
            f"performance_sample_count: {performance_sample_count}"
        )
    if requested.performance_issue_unique and requested.performance_issue_same:
        problems.append(
            "Performance_issue_unique and performance_issue_same, both cannot be true at the same time. "
            "performance_issue_unique: 1 performance_issue_same: 1"
        )
    return problems


def _scenario_targets(requested: TestSettings, problems: list[str]) -> tuple[float, float, int, int]:
    """(target qps, target percentile, latency bound in ns, most outstanding queries)."""
    match requested.scenario:
        case TestScenario.SingleStream:
            expected_ns = requested.single_stream_expected_latency_ns
            percentile = requested.single_stream_target_latency_percentile
            return _qps_of_latency("single_stream_expected_latency_ns", expected_ns), percentile, 0, 1
        case TestScenario.MultiStream:
            expected_ns = requested.multi_stream_expected_latency_ns
            percentile = requested.multi_stream_target_latency_percentile
            return _qps_of_latency("multi_stream_expected_latency_ns", expected_ns), percentile, 0, 1
        case TestScenario.Server:
            qps = _rate("server_target_qps", requested.server_target_qps, problems)
            percentile, latency_ns = (
                requested.server_target_latency_percentile,
                requested.server_target_latency_ns,
            )
            return qps, percentile, latency_ns, requested.server_max_async_queries
        case TestScenario.Offline:
            return _rate("offline_expected_qps", requested.offline_expected_qps, problems), 0.99, 0, 1


def _qps_of_latency(name: str, latency_ns: float) -> float:
    if not latency_ns >= 1.0:
        raise UserError(f"TestSettings.{name} is {latency_ns!r}; give the expected latency, at least 1 ns.")
    return 1e9 / latency_ns


def _rate(name: str, qps: float, problems: list[str]) -> float:
    if qps >= 0.0:
        return qps
    problems.append(f"Invalid value for {name} requested. requested: {qps:g} using: 1")
    return 1.0


def _check_usable(
    requested: TestSettings, target_qps: float, performance_sample_count: int, total_count: int
) -> None:
    """Stops where the official package would divide by zero, loop for ever or read past an array."""
    if total_count < 1:
        raise UserError("The sample library has no samples; give a total sample count of at least 1.")
    if performance_sample_count < 1 and requested.mode != TestMode.AccuracyOnly:
        raise UserError(
            "The sample library's performance sample count is 0; give at least 1, "
            "or set performance_sample_count_override."
        )
    if requested.scenario == TestScenario.MultiStream and requested.multi_stream_samples_per_query < 1:
        raise UserError("TestSettings.multi_stream_samples_per_query is 0; give at least 1.")
    if requested.scenario == TestScenario.Server and not 0.0 < target_qps <= 1e9:
        raise UserError(
            f"TestSettings.server_target_qps is {target_qps!r}; give a rate above 0, at most 1e9."
        )
    for name in ("single_stream", "multi_stream", "server"):
        percentile = getattr(requested, f"{name}_target_latency_percentile")
        if not 0.0 < percentile < 1.0:
            raise UserError(
                f"TestSettings.{name}_target_latency_percentile is {percentile!r}; "
                "give a share between 0 and 1 (0.99, not 99)."
            )
