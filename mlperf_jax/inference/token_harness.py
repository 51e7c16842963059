"""Measures models that answer token by token: `Harness` with engines in the place of batches."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from loadgen_py import TestMode, TestScenario, TestSettings
from mlperf_jax.errors import UserError
from mlperf_jax.goals import Goal
from mlperf_jax.inference import accuracy
from mlperf_jax.inference.measure import Harness, Measurement, say
from mlperf_jax.inference.settings import INTERACTIVE, Timing, make_settings
from mlperf_jax.inference.token_sut import TokenReplica, TokenSamples, TokenSut
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.tokens.answers import answers
from mlperf_jax.workload import State, TokenWorkload

_TIMED_REQUESTS = 64  # at most: different ones, of which times are taken


@dataclasses.dataclass(frozen=True)
class TokenHarness(Harness):
    """See `Harness`; its replicas are `TokenReplica`s and its samples `TokenSamples`.

    Attributes:
        model: reads it once more, to where the first replica lies.
        interactive: whether Server is measured with Interactive's bounds.
    """

    model: Callable[[], tuple[State, Layout]]
    interactive: bool = False

    @property
    def _workload(self) -> TokenWorkload:
        return cast(TokenWorkload, self.workload)

    @property
    def _replicas(self) -> Sequence[TokenReplica]:
        return cast(Sequence[TokenReplica], self.replicas)

    @property
    def _samples(self) -> TokenSamples:
        return cast(TokenSamples, self.samples)

    def under(self, name: str) -> Harness:
        return dataclasses.replace(self, interactive=name == INTERACTIVE)

    def name_of(self, scenario: TestScenario) -> str:
        return INTERACTIVE if self.interactive else scenario.name

    @property
    def goals(self) -> tuple[Goal, ...]:
        reference, share = self.facts["trained_quality"], self.numbers["quality_share"]
        return tuple(
            goal.share(reference[goal.name], share)
            for goal in self._workload.token_goals
            if goal.name in reference
        )

    def prepare(self, scenarios: Sequence[TestScenario]) -> None:
        """As `Harness` has it; also finds what answers are held against."""
        some = np.arange(min(self._samples.performance_count, _TIMED_REQUESTS))
        self._samples.load(some)
        for replica in self._replicas:
            replica.programs.compile()
            replica.measure(list(self._samples.requests.values()))
        self._samples.unload(some)
        self._look_at_the_model()

    def _look_at_the_model(self) -> None:
        """Finds what answers are held against, and what is known of the model whatever it answers, and adds both to the facts."""
        say("computing whole texts, against which answers are held")
        workload, programs = self._workload, self._replicas[0].programs
        indices = np.arange(self._samples.total_count)
        told = answers(programs, map(workload.request, indices.tolist()))
        self.facts["served_figures"] = workload.served_figures(programs, indices)
        reference = workload.reference_figures(*self.model(), indices, told)
        names = [goal.name for goal in workload.token_goals]
        self.facts["trained_quality"] = {name: reference[name] for name in names if name in reference}

    def timings(self, scenario: TestScenario) -> Sequence[Timing]:
        """What some requests take together."""
        return [Timing(1.0, self._replicas[0].seconds)]

    def _settings(self, scenario: TestScenario, mode: TestMode) -> TestSettings:
        numbers: dict[str, Any] = dict(self.numbers)
        if self.interactive:
            numbers["loadgen_model"] += "-interactive"
        timings = self.timings(scenario)
        settings = make_settings(scenario, mode, numbers, self.options.asked, timings, len(self.replicas))
        settings.use_token_latencies = True
        if first_s := numbers["max_first_s"]:
            settings.ttft_latency = round(1e9 * first_s)
        if each_s := numbers["max_each_s"]:
            settings.tpot_latency = round(1e9 * each_s)
        # A set that is smaller than MLPerf's is asked for once, and not as often as fill up theirs.
        if scenario == TestScenario.Offline:
            settings.min_query_count = min(settings.min_query_count, self._samples.total_count)
        return settings

    def _require_possible_bound(self, settings: TestSettings) -> None:
        replica, name = self._replicas[0], self.name_of(settings.scenario)
        for what, seconds, bound_ns in (
            ("first token", replica.first_s, settings.ttft_latency),
            ("other tokens each", replica.each_s, settings.tpot_latency),
        ):
            if 1e9 * seconds > bound_ns:
                raise UserError(
                    f"Of a text alone the {what} takes {1000 * seconds:.3g} ms, longer than {name}'s bound of "
                    f"{bound_ns / 1e6:g} ms, so no rate can meet it; measure Offline, or on a faster machine."
                )

    @contextlib.contextmanager
    def _system(self, settings: TestSettings) -> Iterator[TokenSut]:
        with TokenSut(
            self.sut_name,
            self._replicas,
            self._samples,
            first_tokens=settings.scenario != TestScenario.Offline,
        ) as sut:
            yield sut

    def _beside(self, sut: TokenSut) -> dict[str, float]:
        """Times per output token as mlcommons/endpoints has them, in all scenarios in which LoadGen has them too."""
        gaps = np.sort(sut.text_gaps_ns)
        if not len(gaps) or not sut.first_tokens:
            return {}
        return {
            f"endpoints_tpot_{share}_ns": float(gaps[int(len(gaps) * share / 100)]) for share in (50, 90, 99)
        }

    def _judged(self, measured: Measurement) -> Measurement:
        indices, logged = accuracy.read_answers(measured.result.logs["accuracy"], self._samples.total_count)
        told = [np.frombuffer(answer, "<i4") for answer in logged]
        found = self._workload.token_figures(indices, told) | self.facts["served_figures"]
        return dataclasses.replace(measured, figures=found, goals=self.goals)
