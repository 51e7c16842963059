"""The phases of a run: samples are loaded, queries issued, and what came of them is logged."""

from __future__ import annotations

import datetime
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import numpy as np

from loadgen_py.issue import Phase, issue_queries
from loadgen_py.logs import LoggedAnswers, Logs
from loadgen_py.random import Mt19937
from loadgen_py.responses import ResponseRecorder, told
from loadgen_py.schedule import LoadableSet, Queries, generate_queries, loadable_sets
from loadgen_py.settings import EffectiveSettings, TestScenario
from loadgen_py.statistics import PerformanceVerdict, judge, measure
from loadgen_py.sut import CallbackSut, SampleLibrary, SystemUnderTest
from mlperf_jax.errors import UserError


class BrokenOff(Exception):
    """The run has ended early; why is logged."""


class PhaseRunner:
    """Carries out the phases of one run, one after the other.

    Attributes:
        failures: of the search for a peak.
        broken: the run cannot go on.
        interrupted: by the user.
    """

    def __init__(
        self,
        sut: SystemUnderTest | CallbackSut,
        library: SampleLibrary,
        logs: Logs,
        responses: ResponseRecorder,
    ) -> None:
        self._sut, self._library, self._logs, self._responses = sut, library, logs, responses
        self._sequence = _Sequence()
        self._stops: list[str] = []  # why the run broke off
        self.failures: list[str] = []
        self.broken = self.interrupted = False

    @property
    def errors(self) -> list[str]:
        """What the system under test did wrong and what ended the run early."""
        return self._stops + self._responses.errors

    def note(self, text: str) -> None:
        """A message in the detail log."""
        self._logs.detail("generic_message", text)

    def fail(self, text: str) -> None:
        """An error of the search that makes the run INVALID."""
        self._logs.error(text)
        self.failures.append(text)

    @contextmanager
    def calling(self, who: str) -> Iterator[None]:
        """Ends the run, and raises `BrokenOff`, if `who` raises anything but a `UserError`."""
        try:
            yield
        except (UserError, BrokenOff):
            raise
        except KeyboardInterrupt:
            self.break_off("Interrupted by the user", interrupted=True)
            raise BrokenOff from None
        except BaseException as error:
            traceback.print_exception(error)
            self.break_off(f"{who} raised {told(error)}", interrupted=False)
            raise BrokenOff from error

    def break_off(self, why: str, *, interrupted: bool) -> None:
        """Ends the run: it is INVALID."""
        self.broken = True
        self.interrupted |= interrupted
        self._stops.append(why)
        self._logs.error(why)
        print(f"LoadGen: ERROR: {why}", file=sys.stderr, flush=True)

    def performance_set(self, settings: EffectiveSettings) -> AbstractContextManager[LoadableSet]:
        """The samples that performance queries are drawn from, loaded within the context."""
        return self._loaded(loadable_sets(settings, self._library.total_count, accuracy=False)[0])

    @contextmanager
    def _loaded(self, samples: LoadableSet) -> Iterator[LoadableSet]:
        self._logs.detail("loaded_qsl_set", samples.indices)
        with self.calling("The sample library"):
            self._library.load(samples.indices)
        yield samples  # an exception ends the run, with nothing unloaded
        with suppress(BrokenOff), self.calling("The sample library"):  # what was measured is reported
            self._library.unload(samples.indices)

    def accuracy(self, settings: EffectiveSettings) -> None:
        """Has every sample answered, set by set."""
        self.note("Starting accuracy mode")
        for samples in loadable_sets(settings, self._library.total_count, accuracy=True):
            with self._loaded(samples):
                queries = generate_queries(settings, samples, accuracy=True)
                self._sequence.skip(len(queries.indices))
                self._issue(settings, queries, LoggedAnswers(None), accuracy=True)
            if self.broken:
                return

    def performance(
        self, settings: EffectiveSettings, loaded: LoadableSet, most_slow_share: float | None = None
    ) -> PerformanceVerdict:
        """Issues the queries of one performance phase over a loaded set and judges it.

        With `most_slow_share` the phase ends as soon as more than that share of its queries
        are over the latency bound.
        """
        queries = generate_queries(settings, loaded, accuracy=False)
        if queries.count == 0 or len(queries.indices) == 0:
            raise UserError("The settings ask for no queries; raise min_query_count or min_duration_ms.")
        wanted = self._sequence.logged(settings, len(queries.indices))
        answers = LoggedAnswers(wanted) if wanted is not None else None
        most_slow = None if most_slow_share is None else int(queries.count * most_slow_share)
        phase = self._issue(settings, queries, answers, accuracy=False, most_slow=most_slow)
        return judge(settings, measure(phase))

    def warmup_qps(self, settings: EffectiveSettings, loaded: LoadableSet) -> float:
        """Offline: the rate that the system shows in untimed queries of growing size."""
        wanted_s = settings.requested.offline_warmup_ms / 1000
        count, rate = len(loaded.indices), settings.target_qps
        while not self.broken:
            queries = Queries(np.resize(loaded.indices, count), count, 1, 0)
            phase = self._issue(settings, queries, None, accuracy=True, counted=False)
            took_s = measure(phase).max_latency_s
            if took_s > 0:
                rate = count / took_s
            if took_s >= wanted_s:
                break
            count = int(count * min(max(1.2 * wanted_s / max(took_s, 1e-9), 2), 10))
        self._logs.detail("loadgen_py_offline_warmup_qps", rate)
        return rate

    def _issue(
        self,
        settings: EffectiveSettings,
        queries: Queries,
        answers: LoggedAnswers | None,
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
        errors_before = len(self._responses.errors), self._responses.error_count
        self._responses.begin(
            len(queries.indices),
            log=answers,
            tokens=requested.use_token_latencies,
            needs_first_token=settings.scenario != TestScenario.Offline,
        )
        phase = Phase(settings, queries, self._responses, accuracy, most_slow)
        issue_queries(phase, self._sut)
        self._responses.end()
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
        if not phase.broken and phase.accuracy and responses.completed < len(phase.queries.indices):
            phase.broken = f"Only {responses.completed} of {len(phase.queries.indices)} samples were answered"
        if phase.broken:
            self.break_off(phase.broken, interrupted=phase.interrupted)
            missing = responses.issued - responses.completed
            if missing:
                self._logs.error(
                    f"Encountered incomplete samples at the end of a series of queries. count: {missing}"
                )
        done = np.frombuffer(responses.done, np.int64)
        active_s = max(int(done.max(initial=0)) - phase.start_ns, 0) / 1e9
        self._logs.detail("power_begin", _power_time(phase.start_wall))
        self._logs.detail("power_end", _power_time(phase.start_wall + active_s))


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
