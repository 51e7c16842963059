"""The peak search tries the official rates in the official order, and finds a known capacity."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
import time
from types import SimpleNamespace

import numpy as np
import official_runs
import pytest
import recording
import systems

import loadgen_py as lg
from loadgen_py.early_stopping import slow_queries_allowed
from loadgen_py.find_peak import find_peak
from loadgen_py.settings import EffectiveSettings, resolve


def _case(rng: random.Random) -> dict:
    """Which probes pass is drawn; a probe that does not has all its queries late."""
    rising = rng.randrange(0, 4)
    slow_phases = [False] * rising + [True] + [rng.random() < 0.5 for _ in range(60)]
    settings = {
        "scenario": "Server",
        "mode": "FindPeakPerformance",
        "server_target_qps": rng.choice([200, 333.3, 512.5]),
        "server_target_latency_ns": 100_000_000,
        "server_target_latency_percentile": 0.5,
        "server_find_peak_qps_decimals_of_precision": rng.choice([0, 1]),
        "server_find_peak_qps_boundary_step_size": rng.choice([1, 0.5, 2]),
        "min_duration_ms": 0,
        "min_query_count": 1,
        "sample_index_rng_seed": rng.getrandbits(64),
        "schedule_rng_seed": rng.getrandbits(64),
    }
    return {"settings": settings, "total": 30, "performance": 20, "slow_phases": slow_phases}


def test_the_same_probes_in_the_same_order(tmp_path):
    pytest.importorskip("mlperf_loadgen", reason="the official package is the judge")
    rng = random.Random(3)
    cases = [_case(rng) for _ in range(8)]
    theirs = official_runs.run_official(cases, tmp_path)
    for number, case in enumerate(cases):
        folder = tmp_path / f"ours_{number}"
        folder.mkdir()
        ours = recording.record(lg, case, folder)
        messages = [
            text for text in theirs[number]["detail"]["generic_message"] if "Peak" in text or "Find" in text
        ]
        assert [t for t in ours["detail"]["generic_message"] if "Peak" in t or "Find" in t] == messages
        assert ours["issued"] == theirs[number]["issued"]
        assert ours["loaded"] == theirs[number]["loaded"]
        assert ours["detail"]["result_validity"] == theirs[number]["detail"]["result_validity"]
        assert _rate(ours) == _rate(theirs[number])


def _rate(record: dict) -> str:
    return next(line for line in record["summary"].splitlines() if line.startswith("target_qps"))


class _Capacity:
    """Serves at most so many queries a second, one after the other, from a thread of its own."""

    name = "capacity"

    def __init__(self, qps: float) -> None:
        self._seconds = 1 / qps

    def start(self, responses) -> None:
        self._free_at = 0.0
        self._responses = responses

    def issue(self, ids, indices) -> None:
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + self._seconds
        threading.Timer(self._free_at - now, self._responses.complete, (ids,)).start()

    def flush(self) -> None: ...


@pytest.mark.timing
def test_finds_a_capacity_from_a_base_far_above_it(tmp_path):
    settings = systems.settings(
        "Server",
        "FindPeakPerformance",
        server_target_qps=1600,
        server_target_latency_ns=200_000_000,
        server_target_latency_percentile=0.9,
        min_duration_ms=500,
        min_query_count=1,
        server_find_peak_early_stopping=True,
        server_find_peak_relative_precision=0.3,
    )
    result = lg.run(_Capacity(200), systems.Library(), settings, systems.log_to(tmp_path))
    assert result.valid, result.reasons
    assert result.metrics["early_stopping_met"]
    assert 50 <= result.metrics["result_scheduled_samples_per_sec"] <= 400


def test_a_base_that_fails_is_a_reason(tmp_path):
    settings = systems.settings("Server", "FindPeakPerformance", server_target_latency_ns=1)
    result = lg.run(systems.System(systems.echo), systems.Library(), settings, systems.log_to(tmp_path))
    assert not result.valid and not result.errors
    assert any(reason.condition == "find_peak" for reason in result.reasons)


def test_gives_up_where_even_an_idle_system_is_too_slow(tmp_path):
    """At 100 queries/s 0.3 of them are in flight; the fifth halving leaves less than 0.02."""

    def answer(responses, ids, indices):
        time.sleep(0.003)
        systems.echo(responses, ids, indices)

    settings = systems.settings(
        "Server",
        "FindPeakPerformance",
        server_target_qps=100,
        server_target_latency_ns=1_000_000,
        min_duration_ms=10,
        min_query_count=3,
        server_find_peak_early_stopping=True,
    )
    result = lg.run(systems.System(answer), systems.Library(), settings, systems.log_to(tmp_path))
    assert not result.valid and any(reason.condition == "find_peak" for reason in result.reasons)
    said = [text for text in systems.values(tmp_path, "generic_message") if "idle" in text]
    (rate,) = [float(text.split()[1]) for text in said]
    assert 0.05 < rate < 7  # lower where a busy machine answers later


@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream", "Offline"])
def test_only_for_server(scenario, tmp_path):
    settings = systems.settings(scenario, "FindPeakPerformance")
    result = lg.run(systems.System(systems.echo), systems.Library(), settings, systems.log_to(tmp_path))
    assert not result.valid
    assert "only supported in Server" in systems.errors(tmp_path)[0]


@dataclasses.dataclass
class _Simulated:
    """The phases of a search, answered by a simulated queue of one server instead of by a clock.

    Attributes:
        capacity: queries a second.
        stalled: numbers of the probes that a stall of 0.2 s meets, in their middle.
        overhead: seconds that are added to every latency.
        tried: the rates so far.
    """

    capacity: float
    stalled: frozenset[int] = frozenset()
    overhead: float = 0.0
    seed: int = 0
    broken: bool = False
    tried: list[float] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    def note(self, text: str) -> None: ...

    def fail(self, text: str) -> None:
        self.failures.append(text)

    def performance_set(self, settings: EffectiveSettings):
        return contextlib.nullcontext()

    def performance(self, settings: EffectiveSettings, loaded, most_slow_share) -> SimpleNamespace:
        rng = np.random.default_rng([self.seed, len(self.tried)])
        stall = 0.2 if len(self.tried) in self.stalled else 0.0
        self.tried.append(settings.target_qps)
        due = np.cumsum(rng.exponential(1 / settings.target_qps, max(int(2 * settings.target_qps), 700)))
        service = np.full(len(due), 1 / self.capacity)
        service[len(due) // 2] += stall
        latencies = _done(due, service) - due + self.overhead
        slow = int(np.count_nonzero(latencies > settings.target_latency_ns / 1e9))
        passes = slow <= slow_queries_allowed(len(due), settings.target_latency_percentile)
        return SimpleNamespace(
            settings=settings,
            perf_constraints_met=passes,
            early_stopping=SimpleNamespace(met=passes),
            samples=SimpleNamespace(mean=1e9 * latencies.mean()),
            perf_advice="",
        )


def _done(due: np.ndarray, service: np.ndarray) -> np.ndarray:
    """When a single server is done with queries that are due [N] and take [N] seconds: the latest start decides."""
    total = np.cumsum(service)
    return total + np.maximum.accumulate(due - total + service)


def _search_settings(base: float, twice: bool = True) -> EffectiveSettings:
    asked = systems.settings(
        "Server",
        "FindPeakPerformance",
        server_target_qps=base,
        server_target_latency_ns=20_000_000,
        server_find_peak_early_stopping=twice,
        server_find_peak_relative_precision=0.05,
    )
    return resolve(asked, 16, 64)


def _searched(phases: _Simulated, base: float) -> float:
    rate = find_peak(phases, _search_settings(base)).settings.target_qps
    assert not phases.failures
    return rate


@pytest.mark.parametrize("stall", range(10))
def test_one_stall_does_not_decide(stall):
    """Whichever probe it meets, also the base's: what is found is what a quiet machine finds."""
    quiet = _searched(_Simulated(1000), 100)
    assert 850 <= quiet <= 1000
    assert _searched(_Simulated(1000, frozenset({stall})), 100) >= 0.94 * quiet


def test_stalls_of_random_probes_rarely_decide():
    """A tenth of all probes meet one: as the official search has it, most searches end low or at once."""
    rng = random.Random(1)
    low = {True: 0, False: 0}
    for seed in range(60):
        stalled = frozenset(k for k in range(60) if rng.random() < 0.1)
        capacity = rng.uniform(300, 3000)
        for twice in low:
            phases = _Simulated(capacity, stalled, seed=seed)
            found = find_peak(phases, _search_settings(0.1 * capacity, twice)).settings.target_qps
            assert found <= 1.1 * capacity
            low[twice] += bool(phases.failures) or found < 0.8 * capacity
    assert low[True] <= 8 and low[False] >= 25, low


def test_a_quiet_search_costs_one_probe_more_than_believing_at_once():
    """Ten bounds, of which only the one that ends the search is tried again."""
    phases = _Simulated(1000)
    found = _searched(phases, 100)
    twice = [rate for rate in set(phases.tried) if phases.tried.count(rate) == 2]
    assert len(phases.tried) == len(set(phases.tried)) + len(twice)
    assert len(twice) <= 2 and min(rate for rate in twice) > 0.9 * found


def test_a_system_that_reaches_no_rate_fails_after_few_probes():
    """Every answer comes too late: the search ends once it has seen that twice of an idle system."""
    phases = _Simulated(1000, overhead=0.03)
    find_peak(phases, _search_settings(100))
    assert phases.failures
    assert phases.tried[-1] == phases.tried[-2] < 1
    assert len(phases.tried) <= 10


def test_a_stall_of_an_idle_system_is_not_the_end():
    """At 10 of 100,000 queries a second hardly any meets another, and the bound is missed by the stall alone."""
    assert _searched(_Simulated(100_000, frozenset({0})), 10) > 80_000
