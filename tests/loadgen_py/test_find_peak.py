"""The peak search tries the official rates in the official order, and finds a known capacity."""

from __future__ import annotations

import random
import threading
import time

import official_runs
import pytest
import recording
import systems

import loadgen_py as lg


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
