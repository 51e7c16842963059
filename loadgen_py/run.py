"""One run from settings to result: accuracy, performance, submission and peak search."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import time
from pathlib import Path

import numpy as np

from loadgen_py import conf, find_peak
from loadgen_py.advice import Reason, reasons
from loadgen_py.figures import effective_fields, requested_fields, result_fields, summary_lines
from loadgen_py.issue import Phase, issue_queries
from loadgen_py.logs import Answers, Logs
from loadgen_py.random import Mt19937
from loadgen_py.responses import Responses
from loadgen_py.result import Result
from loadgen_py.schedule import LoadableSet, Queries, generate_queries, loadable_sets
from loadgen_py.settings import (
    EffectiveSettings,
    LogSettings,
    TestMode,
    TestScenario,
    TestSettings,
    resolve,
)
from loadgen_py.statistics import Verdict, judge, measure
from loadgen_py.sut import SampleLibrary, SystemUnderTest
from mlperf_jax import __version__
from mlperf_jax.errors import UserError


def run(
    sut: SystemUnderTest,
    library: SampleLibrary,
    settings: TestSettings,
    log_settings: LogSettings | None = None,
    *,
    audit_config: str | os.PathLike[str] = "audit.config",
) -> Result:
    """Tests a system and writes the logs.

    Args:
        sut: answers through the `Responses` that its `start` is given.
        library: the samples.
        settings: what to test; not changed.
        log_settings: where the logs go; by default into the working directory.
        audit_config: a file that, if it exists, overrides `settings` (compliance tests).

    Returns:
        The result; an error of the system under test or Ctrl-C makes it INVALID, with
        complete logs, and is not raised.

    Raises:
        UserError: for settings that cannot be run and logs that cannot be written.
    """
    return Run(sut, library, settings, log_settings or LogSettings(), Path(audit_config)).execute()


class Run:
    """The state of one run; `execute` carries it through.

    Attributes:
        responses: where the answers go.
    """

    def __init__(
        self,
        sut: SystemUnderTest,
        library: SampleLibrary,
        settings: TestSettings,
        log_settings: LogSettings,
        audit_config: Path,
    ) -> None:
        self._sut, self._library = sut, library
        self._asked, self._log_settings, self._audit_config = settings, log_settings, audit_config
        self.responses = Responses()
        self._sequence = _Sequence()
        self._errors: list[str] = []  # of the system under test
        self._failures: list[str] = []  # of the search for a peak
        self._broken = self._interrupted = False
        self._verdict: Verdict | None = None

    def execute(self) -> Result:
        """Runs the test; see `run`."""
        date_time = datetime.datetime.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        self._logs = Logs(self._log_settings, date_time)
        try:
            self._log_identity(date_time)
            settings = self._effective_settings()
            try:
                self._carry_out(settings)
            except KeyboardInterrupt:  # outside of a phase
                self._break("Interrupted by the user", interrupted=True)
            return self._conclude(settings)
        except Exception as error:
            self._logs.error(f"{type(error).__name__}: {error}")
            raise
        finally:
            self.responses.end()
            self._logs.close()

    def _carry_out(self, settings: EffectiveSettings) -> None:
        self._sut.start(self.responses)
        match settings.mode:
            case TestMode.AccuracyOnly:
                self._accuracy(settings)
            case TestMode.PerformanceOnly:
                self._performance(settings)
            case TestMode.FindPeakPerformance:
                self._find_peak(settings)
            case TestMode.SubmissionRun:
                self._accuracy(settings)
                if not self._broken:
                    self._performance(settings)

    def _log_identity(self, date_time: str) -> None:
        asked_at = time.perf_counter_ns()
        name = self._sut.name
        asking_ns = time.perf_counter_ns() - asked_at
        self._logs.detail("loadgen_version", f"loadgen_py {__version__}")
        self._logs.details(
            {
                "test_datetime": date_time,
                "sut_name": name,
                "get_sut_name_duration_ns": asking_ns,
                "qsl_name": self._library.name,
                "qsl_reported_total_count": self._library.total_count,
                "qsl_reported_performance_count": self._library.performance_count,
            }
        )
        for error in conf.take_pending_errors():
            self._logs.error(error, "error_invalid_config")

    def _effective_settings(self) -> EffectiveSettings:
        settings = dataclasses.replace(self._asked)
        if self._audit_config.is_file():
            self._logs.warning(
                "Found Audit Config file (audit.config). Overriding TestSettings from audit.config file."
            )
            scenario = TestScenario(settings.scenario).name
            settings.FromConfig(str(self._audit_config), "*", scenario, conf.AUDIT)
            for error in conf.take_pending_errors():
                self._logs.error(error, "error_invalid_config")
        if settings.test05:
            self._logs.warning("Test05 flag detected Overriding random seeds")
            settings.mode = TestMode.PerformanceOnly
            for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
                setattr(settings, name, getattr(self._asked, f"test05_{name}"))
        effective = self.resolved(settings)
        for problem in effective.problems:
            self._logs.error(problem, "error_invalid_test_settings")
        if effective.requested.server_num_issue_query_threads:
            self._logs.error(
                "server_num_issue_query_threads is not supported: one thread issues all queries."
            )
        self._logs.details(requested_fields(effective.requested))
        self._logs.details(effective_fields(effective))
        return effective

    def resolved(self, settings: TestSettings) -> EffectiveSettings:
        """The effective settings for this run's sample library."""
        return resolve(settings, self._library.performance_count, self._library.total_count)

    def _accuracy(self, settings: EffectiveSettings) -> None:
        self.note("Starting accuracy mode")
        for loaded in loadable_sets(settings, self._library.total_count, accuracy=True):
            self.load(loaded)
            queries = generate_queries(settings, loaded, accuracy=True)
            self._sequence.skip(len(queries.indices))
            self._issue(settings, queries, Answers(None), accuracy=True)
            self._library.unload(loaded.indices)
            if self._broken:
                return

    def _performance(self, settings: EffectiveSettings) -> None:
        self.note("Starting performance mode")
        loaded = self.performance_set(settings)
        self.load(loaded)
        if settings.scenario == TestScenario.Offline and settings.requested.offline_warmup_ms:
            settings = self._sized_by_warmup(settings, loaded)
        started = time.perf_counter(), time.time()
        if settings.requested.print_timestamps:
            print(f"Loadgen :: Perf mode start. system_clock Timestamp = {int(started[1])}", flush=True)
        verdict = self.measure(settings, loaded)
        self._check_clocks(settings, *started)
        self.report(verdict)
        self._library.unload(loaded.indices)

    def _find_peak(self, settings: EffectiveSettings) -> None:
        self.note("Starting FindPeakPerformance mode")
        if settings.scenario != TestScenario.Server:
            self.fail("Finding peak performance is only supported in Server scenarios.")
            return
        find_peak.find_peak(self, settings)

    # What the peak search uses.

    def performance_set(self, settings: EffectiveSettings) -> LoadableSet:
        """The samples that performance queries are drawn from."""
        return loadable_sets(settings, self._library.total_count, accuracy=False)[0]

    def load(self, loaded: LoadableSet) -> None:
        """Has the library load a set."""
        self._logs.detail("loaded_qsl_set", loaded.indices)
        self._library.load(loaded.indices)

    def unload(self, loaded: LoadableSet) -> None:
        """Has the library unload a set."""
        self._library.unload(loaded.indices)

    def note(self, text: str) -> None:
        """A message in the detail log."""
        self._logs.detail("generic_message", text)

    def fail(self, text: str) -> None:
        """An error of the search that makes the run INVALID."""
        self._logs.error(text)
        self._failures.append(text)

    @property
    def broken(self) -> bool:
        """The run cannot go on."""
        return self._broken

    def measure(
        self, settings: EffectiveSettings, loaded: LoadableSet, most_slow_share: float | None = None
    ) -> Verdict:
        """Issues the queries of one performance phase and judges it.

        With `most_slow_share` the phase ends as soon as more than that share of its queries
        are over the latency bound.
        """
        queries = generate_queries(settings, loaded, accuracy=False)
        if queries.count == 0 or len(queries.indices) == 0:
            raise UserError("The settings ask for no queries; raise min_query_count or min_duration_ms.")
        wanted = self._sequence.logged(settings, len(queries.indices))
        most_slow = None if most_slow_share is None else int(queries.count * most_slow_share)
        phase = self._issue(
            settings,
            queries,
            Answers(wanted) if wanted is not None else None,
            accuracy=False,
            most_slow=most_slow,
        )
        return judge(settings, measure(phase))

    def report(self, verdict: Verdict) -> None:
        """Logs a verdict as the run's result."""
        self._verdict = verdict
        self._valid = verdict.valid and not self._all_errors() and not self._failures
        self._logs.summary(summary_lines(verdict, self._valid, self._sut.name))
        if not self._valid:
            why = [f" * {reason.text}" for reason in reasons(verdict)]
            why += [f" * {error}" for error in self._all_errors() + self._failures]
            self._logs.summary(["", "Why the result is INVALID, and what to try next:", *why])
            for line in why:
                self._logs.detail("loadgen_py_invalid_reason", line.removeprefix(" * "))
        self._logs.details(result_fields(verdict, self._valid))
        self._logs.detail("num_errors", self._logs.error_count)

    # One phase.

    def _issue(
        self,
        settings: EffectiveSettings,
        queries: Queries,
        answers: Answers | None,
        *,
        accuracy: bool,
        most_slow: int | None = None,
        counted: bool = True,
    ) -> Phase:
        """Issues queries and logs what came of them; `counted` phases have sequence numbers."""
        self._logs.details(
            {
                "generated_query_count": queries.count,
                "generated_samples_per_query": queries.samples_per_query,
                "generated_query_duration": queries.duration_ns,
            }
        )
        requested = settings.requested
        errors_before = len(self.responses.errors), self.responses.error_count
        self.responses.begin(
            len(queries.indices),
            log=answers,
            tokens=requested.use_token_latencies,
            needs_first_token=settings.scenario != TestScenario.Offline,
        )
        phase = Phase(settings, queries, self.responses, accuracy, most_slow)
        issue_queries(phase, self._sut)
        self.responses.end()
        self._log_phase(phase, *errors_before)
        if counted:
            if answers is not None:
                self._logs.accuracy(answers.entries(phase, self._sequence.samples))
            self._logs.trace(phase, self._sequence.samples, self._sequence.queries)
            self._sequence.samples += len(queries.indices)
            self._sequence.queries += queries.count
        return phase

    def _log_phase(self, phase: Phase, messages_before: int, count_before: int) -> None:
        responses = phase.responses
        for note in phase.notes:
            self.note(note)
        for error in phase.errors:
            self._logs.error(error)
        for warning in responses.warnings:
            self._logs.warning(warning)
        responses.warnings.clear()
        for error in responses.errors[messages_before:]:
            self._logs.error(error)
        left_out = responses.error_count - count_before - (len(responses.errors) - messages_before)
        if left_out > 0:
            self._logs.error(f"{left_out} more errors of the system under test are left out.")
        if phase.ran_out:
            self._logs.error(
                "Ending early: Ran out of generated queries to issue before the minimum query count and test "
                "duration were reached. Please update the relevant expected latency or target qps in the "
                "TestSettings so they are more accurate."
            )
        if phase.broken:
            self._break(phase.broken, phase.interrupted)
            missing = responses.issued - responses.completed
            if missing:
                self._logs.error(
                    f"Encountered incomplete samples at the end of a series of queries. count: {missing}"
                )
        done = np.frombuffer(responses.done, np.int64)
        active_s = max(int(done.max(initial=0)) - phase.start_ns, 0) / 1e9
        self._logs.detail("power_begin", _power_time(phase.start_wall))
        self._logs.detail("power_end", _power_time(phase.start_wall + active_s))

    def _break(self, why: str, interrupted: bool) -> None:
        self._broken, self._interrupted = True, interrupted
        self._errors.append(why)
        self._logs.error(why)
        print(f"LoadGen: ERROR: {why}", file=sys.stderr, flush=True)

    def _sized_by_warmup(self, settings: EffectiveSettings, loaded: LoadableSet) -> EffectiveSettings:
        """Settings with the rate that the system shows in untimed queries of growing size."""
        wanted_s = settings.requested.offline_warmup_ms / 1000
        count, rate = len(loaded.indices), settings.target_qps
        while not self._broken:
            queries = Queries(np.resize(loaded.indices, count), count, 1, 0)
            phase = self._issue(settings, queries, None, accuracy=True, counted=False)
            took_s = measure(phase).max_latency_s
            if took_s > 0:
                rate = count / took_s
            if took_s >= wanted_s:
                break
            count = int(count * min(max(1.2 * wanted_s / max(took_s, 1e-9), 2), 10))
        self._logs.detail("loadgen_py_offline_warmup_qps", rate)
        return self.resolved(dataclasses.replace(settings.requested, offline_expected_qps=rate))

    def _check_clocks(self, settings: EffectiveSettings, perf_start: float, wall_start: float) -> None:
        """Compares the two clocks, as officially: the one that measures and the one on the wall."""
        perf_ms, wall_ms = (
            int((time.perf_counter() - perf_start) * 1000),
            int((time.time() - wall_start) * 1000),
        )
        ratio = perf_ms / wall_ms if wall_ms > 0 else 1.0
        if settings.requested.print_timestamps:
            print(f"Loadgen :: Perf mode stop. systme_clock Timestamp = {int(time.time())}")
            print(f"Loadgen :: PerfClock Perf duration = {perf_ms}ms")
            print(f"Loadgen :: system_clock Perf duration = {wall_ms}ms")
            print(f"Loadgen :: PerfClock/system_clock ratio = {ratio:.4f}", flush=True)
        off = abs(ratio - 1)
        if off > 0.01 and abs(perf_ms - wall_ms) > 1:
            self._logs.error(f"PerfClock and system_clock differ by more than 1%!  pc_sc_ratio: {ratio:g}")
        elif off > 0.001 and abs(perf_ms - wall_ms) > 1:
            self._logs.warning(
                f"PerfClock and system_clock differ by more than 0.1%!  pc_sc_ratio: {ratio:g}"
            )

    # The end.

    def _all_errors(self) -> list[str]:
        return self._errors + self.responses.errors

    def _conclude(self, settings: EffectiveSettings) -> Result:
        errors = self._all_errors()
        found = reasons(self._verdict) if self._verdict else []
        found += [Reason("system_under_test", error) for error in errors]
        found += [Reason("find_peak", failure) for failure in self._failures]
        metrics = result_fields(self._verdict, self._valid) if self._verdict else {}
        if self._interrupted:
            self._logs.detail("loadgen_py_interrupted", True)
        if found and not self._verdict:
            self._logs.summary(["Result is : INVALID", *(f" * {reason.text}" for reason in found)])
        return Result(
            scenario=settings.scenario.name,
            mode=settings.mode.name,
            valid=not found,
            reasons=tuple(found),
            metrics=metrics,
            errors=tuple(errors),
            interrupted=self._interrupted,
            logs=self._logs.paths,
        )


def _power_time(wall_s: float) -> str:
    moment = datetime.datetime.fromtimestamp(wall_s, datetime.UTC)
    return moment.strftime("%m-%d-%Y %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"


class _Sequence:
    """Numbers of queries and samples through all phases, and the draws that go with them.

    Every generated sample draws a value that decides whether its answer is logged in
    performance mode; the draws are made only when they are asked for.
    """

    def __init__(self) -> None:
        self.samples = self.queries = 0
        self._engine = Mt19937()
        self._skipped = 0

    def skip(self, samples: int) -> None:
        """Passes over the draws of some samples."""
        self._skipped += samples

    def logged(self, settings: EffectiveSettings, samples: int) -> np.ndarray | None:
        """Which of the next samples are logged, `[samples]` bool; None if none are."""
        probability = settings.accuracy_log_probability
        if probability <= 0:
            self.skip(samples)
            return None
        self._engine.words(2 * self._skipped)
        self._skipped = 0
        values = self._engine.doubles(samples)
        values += Mt19937(settings.requested.accuracy_log_rng_seed).doubles(1)[0]
        return np.where(values < 1.0, values, values - 1.0) <= probability
