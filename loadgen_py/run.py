"""One run from settings to result: accuracy, performance, submission and peak search."""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from contextlib import suppress
from pathlib import Path

from loadgen_py import conf
from loadgen_py.advice import Reason, reasons
from loadgen_py.figures import effective_fields, requested_fields, result_fields, summary_lines
from loadgen_py.find_peak import find_peak
from loadgen_py.logs import Logs
from loadgen_py.phases import BrokenOff, PhaseRunner
from loadgen_py.responses import ResponseRecorder, told
from loadgen_py.result import Result
from loadgen_py.settings import (
    EffectiveSettings,
    LogSettings,
    TestMode,
    TestScenario,
    TestSettings,
    resolve,
)
from loadgen_py.statistics import PerformanceVerdict
from loadgen_py.sut import CallbackSut, SampleLibrary, SystemUnderTest
from mlperf_jax import __version__


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
    return LoadTest(sut, library, settings, log_settings or LogSettings(), Path(audit_config)).execute()


class LoadTest:
    """One test of a system; `execute` carries it through, once.

    Attributes:
        responses: where the answers go.
    """

    def __init__(
        self,
        sut: SystemUnderTest | CallbackSut,
        library: SampleLibrary,
        settings: TestSettings,
        log_settings: LogSettings,
        audit_config: Path,
    ) -> None:
        self._sut, self._library = sut, library
        self._asked, self._log_settings, self._audit_config = settings, log_settings, audit_config
        self.responses = ResponseRecorder()
        self._verdict: PerformanceVerdict | None = None

    def execute(self) -> Result:
        """Runs the test; see `run`."""
        date_time = datetime.datetime.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        self._logs = Logs(self._log_settings, date_time)
        self._phases = PhaseRunner(self._sut, self._library, self._logs, self.responses)
        try:
            self._log_identity(date_time)
            settings = self._effective_settings()
            with suppress(BrokenOff), self._phases.calling("LoadGen"):
                self._carry_out(settings)
            return self._conclude(settings)
        except BaseException as error:
            self._logs.error(told(error))
            raise
        finally:
            self.responses.end()
            self._logs.close()

    def _carry_out(self, settings: EffectiveSettings) -> None:
        with self._phases.calling("The system under test"):
            self._sut.start(self.responses)
        match settings.mode:
            case TestMode.AccuracyOnly:
                self._phases.accuracy(settings)
            case TestMode.PerformanceOnly:
                self._performance(settings)
            case TestMode.FindPeakPerformance:
                self._find_peak(settings)
            case TestMode.SubmissionRun:
                self._phases.accuracy(settings)
                if not self._phases.broken:
                    self._performance(settings)

    def _log_identity(self, date_time: str) -> None:
        asked_at = time.perf_counter_ns()
        self._name = self._sut.name
        asking_ns = time.perf_counter_ns() - asked_at
        self._logs.detail("loadgen_version", f"loadgen_py {__version__}")
        self._logs.details(
            {
                "test_datetime": date_time,
                "sut_name": self._name,
                "get_sut_name_duration_ns": asking_ns,
                "qsl_name": self._library.name,
                "qsl_reported_total_count": self._library.total_count,
                "qsl_reported_performance_count": self._library.performance_count,
            }
        )
        self._log_config_remarks()

    def _log_config_remarks(self) -> None:
        for error in conf.take_pending_errors():
            self._logs.error(error, "error_invalid_config")
        for warning in conf.take_pending_warnings():
            self._logs.warning(warning)

    def _effective_settings(self) -> EffectiveSettings:
        settings = dataclasses.replace(self._asked)
        if self._audit_config.is_file():
            self._logs.warning(
                "Found Audit Config file (audit.config). Overriding TestSettings from audit.config file."
            )
            settings.FromConfig(str(self._audit_config), "*", settings.scenario.name, conf.AUDIT)
            self._log_config_remarks()
        if settings.test05:
            self._logs.warning("Test05 flag detected Overriding random seeds")
            settings.mode = TestMode.PerformanceOnly
            for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
                setattr(settings, name, getattr(self._asked, f"test05_{name}"))
        effective = self._resolved(settings)
        for problem in effective.problems:
            self._logs.error(problem, "error_invalid_test_settings")
        self._logs.details(requested_fields(effective.requested))
        self._logs.details(effective_fields(effective))
        return effective

    def _resolved(self, settings: TestSettings) -> EffectiveSettings:
        """The effective settings for this run's sample library."""
        return resolve(settings, self._library.performance_count, self._library.total_count)

    def _performance(self, settings: EffectiveSettings) -> None:
        phases, requested = self._phases, settings.requested
        phases.note("Starting performance mode")
        with phases.performance_set(settings) as loaded:
            if settings.scenario == TestScenario.Offline and requested.offline_warmup_ms:
                qps = phases.warmup_qps(settings, loaded)
                if phases.broken:
                    return
                settings = self._resolved(dataclasses.replace(requested, offline_expected_qps=qps))
            started = time.perf_counter(), time.time()
            if requested.print_timestamps:
                print(f"Loadgen :: Perf mode start. system_clock Timestamp = {int(started[1])}", flush=True)
            verdict = phases.performance(settings, loaded)
            self._check_clocks(settings, *started)
        self._report(verdict)

    def _find_peak(self, settings: EffectiveSettings) -> None:
        self._phases.note("Starting FindPeakPerformance mode")
        if settings.scenario != TestScenario.Server:
            self._phases.fail("Finding peak performance is only supported in Server scenarios.")
            return
        self._report(find_peak(self._phases, settings))

    def _report(self, verdict: PerformanceVerdict) -> None:
        """Logs a verdict as the test's result."""
        self._verdict = verdict
        wrong = self._phases.errors + self._phases.failures
        self._valid = verdict.valid and not wrong
        self._logs.summary(summary_lines(verdict, self._valid, self._name))
        if not self._valid:
            why = [reason.text for reason in reasons(verdict)] + wrong
            lines = (f" * {text}" for text in why)
            self._logs.summary(["", "Why the result is INVALID, and what to try next:", *lines])
            for text in why:
                self._logs.detail("loadgen_py_invalid_reason", text)
        self._logs.details(result_fields(verdict, self._valid))
        self._logs.detail("num_errors", self._logs.error_count)

    def _check_clocks(self, settings: EffectiveSettings, perf_start: float, wall_start: float) -> None:
        """Compares the two clocks, as officially: the one that measures and the one on the wall."""
        perf_ms = int((time.perf_counter() - perf_start) * 1000)
        wall_ms = int((time.time() - wall_start) * 1000)
        ratio = perf_ms / wall_ms if wall_ms > 0 else 1.0
        if settings.requested.print_timestamps:
            print(f"Loadgen :: Perf mode stop. systme_clock Timestamp = {int(time.time())}")
            print(f"Loadgen :: PerfClock Perf duration = {perf_ms}ms")
            print(f"Loadgen :: system_clock Perf duration = {wall_ms}ms")
            print(f"Loadgen :: PerfClock/system_clock ratio = {ratio:.4f}", flush=True)
        off = abs(ratio - 1) if abs(perf_ms - wall_ms) > 1 else 0.0
        if off > 0.01:
            self._logs.error(f"PerfClock and system_clock differ by more than 1%!  pc_sc_ratio: {ratio:g}")
        elif off > 0.001:
            self._logs.warning(
                f"PerfClock and system_clock differ by more than 0.1%!  pc_sc_ratio: {ratio:g}"
            )

    def _conclude(self, settings: EffectiveSettings) -> Result:
        phases, errors = self._phases, self._phases.errors
        found = reasons(self._verdict) if self._verdict else []
        found += [Reason("system_under_test", error) for error in errors]
        found += [Reason("find_peak", failure) for failure in phases.failures]
        metrics = result_fields(self._verdict, self._valid) if self._verdict else {}
        if phases.interrupted:
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
            interrupted=phases.interrupted,
            logs=self._logs.paths,
        )
