"""Measures one scenario after the other: the system under test, LoadGen's runs, their folders."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import loadgen_py as lg
from loadgen_py import TestMode, TestScenario, TestSettings
from loadgen_py.jax_sut import BatchingSut, InlineSut
from loadgen_py.official import run_official
from loadgen_py.replica import Replica, Samples
from loadgen_py.settings import resolve
from mlperf_jax import compilation_cache
from mlperf_jax.errors import UserError
from mlperf_jax.goals import Goal, figures, quality, reached, targets
from mlperf_jax.inference import accuracy
from mlperf_jax.inference.options import InferOptions
from mlperf_jax.inference.settings import Timing, capacity, defaults, in_flags, ladder, make_settings
from mlperf_jax.inference.watch import Watch
from mlperf_jax.judging.compliance import Verdict
from mlperf_jax.results.folders import write_json
from mlperf_jax.workload import ServedWorkload

_STREAMS = (TestScenario.SingleStream, TestScenario.MultiStream)
_ATTEMPTS = 5
_NO_AUDIT = Path("audit.config")  # as officially: one in the working directory counts
_TRACED_SAMPLES = 20_000  # a trace of about 4 MB
_MOST_LONGER = 3
# Of the rate that the search found: a longer run meets slower moments than a short probe.
_OF_PEAK = 0.9
_ACCURACY_SHARE = 0.5  # of the capacity: the rate of Server's accuracy run, where latency does not count

# To each replica. With a second one even batches that are not full overlap with the transfers of others;
# a CPU's "device" is the host's own cores, which two would only take from each other.
_THREADS = {"cpu": 1, "gpu": 2, "tpu": 2}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One run of LoadGen.

    Attributes:
        scenario: under whose name it was measured, as "Interactive".
        kind: "performance", "accuracy", "submission", "find_peak", or performance by the official package.
        result: LoadGen's own.
        settings: what was asked of LoadGen.
        folder: where the logs lie.
        figures: of the logged answers, where they were judged.
        goals: what these must reach.
        batches: batch size -> how many were run, where batches were formed.
        verdicts: of a compliance test.
        beside: what LoadGen does not measure, by name.
    """

    scenario: str
    kind: str
    result: lg.Result
    settings: TestSettings
    folder: Path
    figures: Mapping[str, float] | None = None
    goals: tuple[Goal, ...] = ()
    batches: Mapping[int, int] | None = None
    verdicts: tuple[Verdict, ...] = ()
    beside: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """VALID, and good enough where quality was judged; of a compliance test, passed."""
        good = self.figures is None or reached(self.goals, self.figures)
        return self.result.valid and good and all(verdict.passed for verdict in self.verdicts)


@dataclasses.dataclass(frozen=True)
class Harness:
    """What LoadGen measures, and how all runs of a command measure it.

    Attributes:
        workload: says how good answers are.
        replicas: the model on the devices.
        samples: the library.
        options: what the user said.
        facts: what every result records of model and machine; `prepare` adds how many programs were kept from before.
    """

    workload: ServedWorkload
    replicas: Sequence[Replica]
    samples: Samples
    options: InferOptions
    facts: dict[str, Any]

    @property
    def numbers(self) -> Mapping[str, Any]:
        return self.workload.config.inference

    @property
    def root(self) -> Path:
        """RESULTS[/mini]/inference/<system>/<workload>."""
        workload = self.options.workload.replace(":", ".")
        return self.options.preset_dir / "inference" / self.facts["system"] / workload

    @property
    def sut_name(self) -> str:
        """In LoadGen's logs."""
        return f"mlperf_jax {self.options.workload} on {self.facts['system']}"

    def under(self, name: str) -> Harness:
        """For a scenario of MLPerf's, which LoadGen may know by another name."""
        return self

    def name_of(self, scenario: TestScenario) -> str:
        """What MLPerf calls it."""
        return scenario.name

    @property
    def goals(self) -> tuple[Goal, ...]:
        """What the answers must reach: a share of what was reached in training."""
        goals, share = self.workload.served_goals, self.numbers["quality_share"]
        trained = figures(goals, self.facts["trained_quality"])
        return tuple(goal.share(trained[goal.name], share) for goal in goals)

    def prepare(self, scenarios: Sequence[TestScenario]) -> None:
        """Compiles and times everything that these scenarios call, so that nothing is left for a measured run."""
        sizes = {
            bucket: {size for scenario in scenarios for size in self._batch_sizes(scenario, bucket)}
            for bucket in self.samples.buckets
        }
        found = compilation_cache.found()
        # XLA compiles without the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(lambda replica: replica.compile(sizes), self.replicas):
                pass
        if compilation_cache.is_used():
            made = len(self.replicas) * sum(map(len, sizes.values()))
            self.facts["programs"] = {"needed": made, "cached": compilation_cache.found() - found}
        self.samples.load(self.samples.firsts)
        for replica in self.replicas:
            replica.measure()
        self.samples.unload(self.samples.firsts)

    def _batch_sizes(self, scenario: TestScenario, bucket: str) -> Iterable[int]:
        rows = self.samples.most_rows[bucket]
        sizes = ladder(self.numbers, bucket)
        if scenario not in _STREAMS:
            return (*sizes, rows) if max(sizes) < rows else sizes
        per_query = 1
        if scenario == TestScenario.MultiStream:
            per_query = defaults(self.numbers["loadgen_model"], scenario).multi_stream_samples_per_query
        if rows > 1:
            return _covering(sizes, rows * -(-per_query // len(self.replicas)))
        return _pieces(per_query, len(self.replicas), mixed=len(self.samples.buckets) > 1)

    def timings(self, scenario: TestScenario) -> Sequence[Timing]:
        """What calls take, of each bucket for the batch sizes that the scenario uses and that hold a mean sample."""
        timed = self.replicas[0].seconds
        means = self.samples.mean_rows
        return [
            Timing(
                count / self.samples.total_count,
                {
                    size / means[bucket]: timed[bucket][size]
                    for size in self._batch_sizes(scenario, bucket)
                    if size >= means[bucket]
                },
            )
            for bucket, count in zip(self.samples.buckets, self.samples.counts.tolist(), strict=True)
        ]

    def performance(self, scenario: TestScenario) -> Iterator[Measurement]:
        """Measures; where no rate was given for Server, searches it first."""
        settings = self._settings(scenario, TestMode.PerformanceOnly)
        yield from self._with_rate(settings, "performance", "performance/run_1")

    def submission(self, scenario: TestScenario) -> Iterator[Measurement]:
        """Accuracy and performance in one run, as LoadGen's SubmissionRun has it."""
        settings = self._settings(scenario, TestMode.SubmissionRun)
        yield from self._with_rate(settings, "submission", "submission")

    def _with_rate(self, settings: TestSettings, kind: str, place: str) -> Iterator[Measurement]:
        if settings.scenario == TestScenario.Server and self.options.asked.qps:
            self._require_possible_bound(settings)
        elif settings.scenario == TestScenario.Server:
            found = yield from self.find_peak()
            if not found:
                return
            settings.server_target_qps = _OF_PEAK * found
        yield self._run_until_valid(settings, kind, place)

    def accuracy(self, scenario: TestScenario) -> Iterator[Measurement]:
        """Answers every sample once, and judges the logged answers."""
        settings = self._settings(scenario, TestMode.AccuracyOnly)
        if scenario == TestScenario.Server and not self.options.asked.qps:
            settings.server_target_qps = _ACCURACY_SHARE * capacity(
                self.timings(scenario), len(self.replicas)
            )
        yield self._run(settings, "accuracy", "accuracy")

    def find_peak(self) -> Generator[Measurement, None, float]:
        """Searches the highest rate of Server; yields the measured and returns the rate, 0.0 if there is none.

        Raises:
            UserError: no rate can be low enough.
        """
        settings = self._settings(TestScenario.Server, TestMode.FindPeakPerformance)
        self._require_possible_bound(settings)
        measured = self._run(settings, "find_peak", "find_peak")
        yield measured
        return measured.result.metrics["result_scheduled_samples_per_sec"] if measured.result.valid else 0.0

    def _require_possible_bound(self, settings: TestSettings) -> None:
        """Refuses a bound on Server's latency that no rate could meet.

        Raises:
            UserError: the fastest call takes longer.
        """
        bound_s = settings.server_target_latency_ns / 1e9
        slow = [timing for timing in self.timings(TestScenario.Server) if timing.fastest > bound_s]
        if sum(timing.share for timing in slow) > 1 - settings.server_target_latency_percentile:
            alone_s = max(timing.fastest for timing in slow)
            raise UserError(
                f"A sample alone takes {1000 * alone_s:.3g} ms, longer than Server's bound of "
                f"{1000 * bound_s:g} ms, so no rate can meet it; give a --max_latency above {alone_s:.2g}."
            )

    def run_audited(self, settings: TestSettings, test: str, audit_config: str) -> Measurement:
        """A performance run under a compliance test's audit.config.

        Args:
            settings: of the run that is tested.
            test: its name, and the folder's.
            audit_config: the text of the file.
        """
        place = f"{test}/performance/run_1"
        path = self.root / self.name_of(settings.scenario) / test / "audit.config"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(audit_config)
        return self._run(settings, test, place, audit_config=path)

    def official(self, ours: Measurement) -> Measurement:
        """The same measured through the official package.

        Raises:
            UserError: it is not installed.
        """
        settings = ours.settings
        if settings.scenario == TestScenario.Offline:
            rate = ours.result.metrics["result_samples_per_second"]
            settings = dataclasses.replace(settings, offline_expected_qps=rate)
        name = self.name_of(settings.scenario)
        folder = self.root / name / "official" / "performance" / "run_1"
        _empty(folder)
        with self._system(settings) as sut:
            result = run_official(sut, self.samples, settings, folder)
        measured = Measurement(name, "performance by the official package", result, settings, folder)
        self._write(measured)
        return measured

    def _settings(self, scenario: TestScenario, mode: TestMode) -> TestSettings:
        return make_settings(
            scenario, mode, self.numbers, self.options.asked, self.timings(scenario), len(self.replicas)
        )

    def _run_until_valid(self, settings: TestSettings, kind: str, place: str) -> Measurement:
        """Runs, and once more with what LoadGen suggests where only a measured setting was off."""
        for attempt in range(_ATTEMPTS):
            measured = self._run(settings, kind, place)
            changes = self._suggested(measured)
            if measured.result.valid or measured.result.errors or not changes or attempt == _ATTEMPTS - 1:
                break
            shown = ", ".join(f"{name}={value:g}" for name, value in changes.items())
            missed = in_flags(dataclasses.replace(measured.result.reasons[0], try_next={}))
            say(f"{self.name_of(settings.scenario)} was INVALID: {missed} Once more with LoadGen's {shown}.")
            settings = dataclasses.replace(settings)  # the measured keeps those it was made with
            for name, value in changes.items():
                setattr(settings, name, value)
        return measured

    def _suggested(self, measured: Measurement) -> dict[str, int | float]:
        """What to change, of that which the user did not fix."""
        changes = {
            name: value for reason in measured.result.reasons for name, value in reason.try_next.items()
        }
        if measured.settings.scenario == TestScenario.Server:
            # A lower rate helps against slow queries; a longer run only against too few of the others.
            longer = changes.pop("min_duration_ms", 0)
            if (
                "server_target_qps" not in changes
                and longer <= _MOST_LONGER * measured.settings.min_duration_ms
            ):
                return {"min_duration_ms": longer} if longer else {}
            lower = _OF_PEAK * measured.settings.server_target_qps
            changes["server_target_qps"] = min(changes.get("server_target_qps", lower), lower)
        if self.options.asked.qps:
            changes.pop("server_target_qps", None)
        if "offline_expected_qps" in changes:
            changes["offline_warmup_ms"] = 0
        return changes

    def _run(
        self, settings: TestSettings, kind: str, place: str, *, audit_config: Path = _NO_AUDIT
    ) -> Measurement:
        """One run of LoadGen with logs in a folder that holds nothing of an earlier one."""
        name = self.name_of(settings.scenario)
        folder = self.root / name / place
        _empty(folder)
        log_settings = lg.LogSettings(
            log_output=lg.LogOutputSettings(outdir=str(folder)),
            # Written from arrays when the run is over; the report's histogram is drawn from it.
            enable_trace=kind == "performance",
            max_trace_samples=_TRACED_SAMPLES,
        )
        performs = settings.mode != TestMode.AccuracyOnly
        least_s = settings.min_duration_ms / 1000 if performs else 0.0
        trace = folder / "profile" if self.options.profile and kind == "performance" else None
        with self._system(settings) as sut:
            what = f"{name} {kind}"
            watch = Watch(
                sut,
                what,
                least_s=least_s,
                samples=self._known_samples(settings),
                stream=sys.stderr,
                profile_dir=trace,
            )
            with watch as watched:
                result = lg.run(watched, self.samples, settings, log_settings, audit_config=audit_config)
            batches = None if isinstance(sut, InlineSut) else dict(sorted(sut.batches.items()))
        beside = self._beside(sut)
        measured = Measurement(name, kind, result, settings, folder, batches=batches, beside=beside)
        if kind in ("accuracy", "submission") and not result.errors:
            measured = self._judged(measured)
        self._write(measured)
        return measured

    def _beside(self, sut: Any) -> dict[str, float]:
        """What a system measured of itself in a run."""
        return {}

    def _known_samples(self, settings: TestSettings) -> int:
        """How many samples a run is over; 0 where its time decides."""
        if settings.mode == TestMode.AccuracyOnly:
            return self.samples.total_count
        if settings.scenario != TestScenario.Offline:
            return 0
        return resolve(settings, self.samples.performance_count, self.samples.total_count).samples_per_query

    @contextlib.contextmanager
    def _system(self, settings: TestSettings) -> Iterator[Any]:
        """The system under test for a scenario."""
        if settings.scenario in _STREAMS:
            yield InlineSut(self.sut_name, self.replicas, self.samples)
            return
        bound_s = settings.server_target_latency_ns / 1e9
        platform = self.facts["devices"]["platform"]
        with BatchingSut(
            self.sut_name,
            self.replicas,
            self.samples,
            threads=_THREADS[platform],
            latency_budget_s=bound_s if settings.scenario == TestScenario.Server else None,
        ) as sut:
            yield sut

    def _judged(self, measured: Measurement) -> Measurement:
        indices, answers = accuracy.read_answers(measured.result.logs["accuracy"], self.samples.total_count)
        found = self.workload.answered_figures(indices, answers)
        return dataclasses.replace(measured, figures=found, goals=self.goals)

    def _write(self, measured: Measurement) -> None:
        result = dataclasses.asdict(measured.result)
        result["logs"] = {kind: path.name for kind, path in measured.result.logs.items()}
        record = {
            "kind": measured.kind,
            "passed": measured.passed,
            **result,
            **measured.beside,
            "settings": {
                **dataclasses.asdict(measured.settings),
                "scenario": int(measured.settings.scenario),
                "mode": int(measured.settings.mode),
            },
        }
        if measured.figures is not None:
            digest = hashlib.sha256(measured.result.logs["accuracy"].read_bytes()).hexdigest()
            record |= {
                "metric": ", ".join(goal.metric for goal in measured.goals),
                "quality": quality(measured.goals, measured.figures),
                "quality_target": targets(measured.goals),
                "figures": dict(measured.figures),
                "direction": {goal.name: goal.direction.value for goal in measured.goals},
                "accuracy_log_sha256": digest,
            }
        if measured.batches is not None:
            record["batches"] = measured.batches
        if self.options.profile and measured.kind == "performance":
            record["profiled"] = True  # its figures suffered from that
        write_json(measured.folder / "result.json", record | dict(self.facts))


def _covering(sizes: Iterable[int], most: int) -> set[int]:
    """Of these batch sizes those that at most so many rows are padded to, and `most` itself where none is as large."""
    return {*(size for size in sizes if size < most), min((s for s in sizes if s >= most), default=most)}


def _pieces(samples: int, replicas: int, *, mixed: bool) -> set[int]:
    """The sizes into which `InlineSut` divides a query; of any up to the largest, which may be padded, where it is mixed."""
    largest = -(-samples // replicas)
    if mixed:
        return {min(2**k, largest) for k in range(largest.bit_length() + 1)}
    return {samples // replicas, largest} - {0}


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*"):
        if path.name.startswith("mlperf_log_") or path.name == "result.json":
            path.unlink()
    shutil.rmtree(folder / "profile", ignore_errors=True)


def say(text: str) -> None:
    """A word to people."""
    print(f"mlperf_jax: {text}", file=sys.stderr, flush=True)
