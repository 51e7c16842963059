"""The native idiom: results, reasons, what goes beyond the official package, and that package itself."""

from __future__ import annotations

import dataclasses
import json
import math
import queue
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import systems

import loadgen_py as lg
from mlperf_jax.errors import UserError

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")


def _run(tmp_path: Path, answer, scenario: str, mode: str = "PerformanceOnly", **fields) -> lg.Result:
    settings = systems.settings(scenario, mode, **fields)
    return lg.run(systems.System(answer), systems.Library(), settings, systems.log_to(tmp_path))


def _paced(samples_per_s: float):
    """Takes its time for each query."""

    def answer(responses, ids, indices):
        time.sleep(len(ids) / samples_per_s)
        systems.echo(responses, ids, indices)

    return answer


def test_imports_no_jax():
    code = "import sys, loadgen_py; sys.exit(bool({'jax', 'mlperf_loadgen'} & set(sys.modules)))"
    root = Path(lg.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@pytest.mark.timing
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_submission_runs_have_both_parts(scenario, tmp_path):
    system, library = systems.System(systems.echo), systems.Library()
    fields = dict(min_duration_ms=0, min_query_count=1000, server_target_qps=20_000)
    settings = systems.settings(scenario, "SubmissionRun", **fields)
    result = lg.run(system, library, settings, systems.log_to(tmp_path))
    assert result.valid, result.reasons
    entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    assert sorted(entry["qsl_idx"] for entry in entries) == list(range(64))
    assert all(bytes.fromhex(e["data"]) == e["qsl_idx"].to_bytes(4, "little") for e in entries)
    assert len(library.loaded) == 5 and system.flushed == 5
    assert result.metrics["result_validity"] == "VALID"


def test_settings_are_not_changed(tmp_path):
    settings = systems.settings("Server")
    before = dataclasses.replace(settings)
    (tmp_path / "audit.config").write_text("*.*.min_query_count = 3\n")
    lg.run(
        systems.System(systems.echo), systems.Library(), settings, systems.log_to(tmp_path),
        audit_config=tmp_path / "audit.config",
    )  # fmt: skip
    assert settings == before


def test_a_result_is_saved_as_strict_json(tmp_path):
    result = _run(tmp_path, systems.echo, "Server", min_query_count=1, min_duration_ms=0)
    assert math.isnan(result.metrics["result_scheduled_samples_per_sec"])
    result.save(tmp_path / "result.json")
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["schema_version"] == 1
    assert record["metrics"]["result_scheduled_samples_per_sec"] is None
    assert record["reasons"][0]["condition"] == "early_stopping"
    assert systems.values(tmp_path, "result_scheduled_samples_per_sec") == [None]


@pytest.mark.timing
@pytest.mark.parametrize(
    "scenario, answer, fields, condition",
    [
        ("SingleStream", systems.echo, dict(single_stream_expected_latency_ns=10**6), "min_duration"),
        ("MultiStream", systems.echo, dict(multi_stream_expected_latency_ns=10**6), "min_duration"),
        ("Offline", _paced(50_000), dict(offline_expected_qps=1000), "min_duration"),
        ("SingleStream", _paced(2_000), dict(min_query_count=20, min_duration_ms=0), "early_stopping"),
        ("Server", systems.echo, dict(min_query_count=20, min_duration_ms=20), "early_stopping"),
        (
            "Server",
            _paced(400),
            dict(
                server_target_qps=900,
                server_target_latency_ns=30_000_000,
                server_target_latency_percentile=0.8,
            ),
            "performance_constraints",
        ),
    ],
    ids=["ss-short", "ms-short", "offline-short", "ss-few", "server-few", "server-slow"],
)
def test_an_invalid_result_says_why_and_what_to_try(scenario, answer, fields, condition, tmp_path):
    """Following the advice ends VALID, after a few rounds where the advice is an estimate."""
    if fields.get("min_duration_ms") is None:
        fields = fields | {"min_duration_ms": 400}
    settings = systems.settings(scenario, **fields)
    conditions = []
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        result = lg.run(systems.System(answer), systems.Library(), settings, systems.log_to(folder))
        if result.valid:
            break
        conditions.append(result.reasons[0].condition)
        for reason in result.reasons:
            assert any(char.isdigit() for char in reason.text)
            assert reason.text in (folder / "mlperf_log_summary.txt").read_text()
            assert reason.text in systems.values(folder, "loadgen_py_invalid_reason")
            for name, value in reason.try_next.items():
                assert f"{name}=" in reason.text
                setattr(settings, name, value)
    assert result.valid, result.reasons
    assert conditions[0] == condition


@pytest.mark.timing
def test_offline_sized_by_a_warm_up(tmp_path):
    fields = dict(offline_warmup_ms=100, offline_expected_qps=1, min_duration_ms=300, min_query_count=1)
    result = _run(tmp_path, _paced(20_000), "Offline", **fields)
    assert result.valid, result.reasons
    (rate,) = systems.values(tmp_path, "loadgen_py_offline_warmup_qps")
    assert 5_000 < rate < 21_000  # sleeping takes no less time than asked for
    assert result.metrics["result_samples_per_second"] < 21_000


class _Queue:
    """Works through its samples in a thread, ten at a time."""

    name = "queue"

    def start(self, responses) -> None:
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._work, args=(responses,), daemon=True).start()

    def _work(self, responses) -> None:
        while True:
            ids = self._waiting.get()
            for start in range(0, len(ids), 10):
                time.sleep(0.001)
                responses.complete(ids[start : start + 10])

    def issue(self, ids, indices) -> None:
        self._waiting.put(ids)

    def flush(self) -> None: ...


@pytest.mark.parametrize("make", [_Queue, lambda: systems.System(_paced(10_000))], ids=["thread", "inline"])
def test_offline_stops_at_the_maximum_duration(make, tmp_path):
    settings = systems.settings(
        "Offline",
        min_query_count=100_000,
        min_duration_ms=0,
        max_duration_ms=300,
        offline_enforce_max_duration=True,
    )
    result = lg.run(make(), systems.Library(), settings, systems.log_to(tmp_path))
    answered = result.metrics["result_samples_per_second"] * result.metrics["result_max_latency_ns"] / 1e9
    assert 0 < answered < 50_000
    assert result.metrics["result_samples_per_second"] < 11_000
    assert not result.valid and [reason.condition for reason in result.reasons] == ["min_queries"]


def test_offline_answers_in_any_order_and_portion(tmp_path):
    def answer(responses, ids, indices):
        order = list(ids)
        responses.complete(order[::-2])
        responses.complete(ids[::2] if len(ids) % 2 else ids[0::2])

    assert _run(tmp_path, answer, "Offline", min_duration_ms=0, min_query_count=1000).valid


def test_the_trace_is_json_and_bounded(tmp_path):
    settings = systems.settings("Server", min_duration_ms=0, min_query_count=500, server_target_qps=20_000)
    logs = systems.log_to(tmp_path, enable_trace=True, max_trace_samples=100)
    lg.run(systems.System(systems.echo), systems.Library(), settings, logs)
    events = json.loads((tmp_path / "mlperf_log_trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "Sample" for event in events) == 200


@pytest.mark.parametrize(
    "scenario, fields, word",
    [
        ("Server", dict(server_target_qps=0), "server_target_qps"),
        ("SingleStream", dict(single_stream_expected_latency_ns=0), "expected_latency"),
        ("MultiStream", dict(multi_stream_samples_per_query=0), "samples_per_query"),
        ("Server", dict(server_target_latency_percentile=99), "percentile"),
        ("SingleStream", dict(min_query_count=0, min_duration_ms=0), "no queries"),
        ("Server", dict(performance_issue_same=True, performance_issue_same_index=16), "same_index"),
    ],
)
def test_settings_that_cannot_be_run_are_named(scenario, fields, word, tmp_path):
    """Where the official package divides by zero, loops for ever or reads past an array."""
    with pytest.raises(UserError, match=word):
        _run(tmp_path, systems.echo, scenario, **fields)
    assert any(word in error for error in systems.errors(tmp_path))


@pytest.mark.timing
def test_through_the_official_package(tmp_path):
    """The same system gives the same answers, and errors and exceptions end in an INVALID result."""
    pytest.importorskip("mlperf_loadgen", reason="the official package is the judge")
    script = textwrap.dedent(
        """
        import sys
        sys.path[:0] = sys.argv[2:]
        from pathlib import Path
        import systems, loadgen_py as lg
        root = Path(sys.argv[1])
        def broken(responses, ids, indices):
            raise ValueError("no such model")
        def twice(responses, ids, indices):
            systems.echo(responses, ids, indices)
            systems.echo(responses, ids, indices)
        for name, answer in [("good", systems.echo), ("broken", broken), ("twice", twice)]:
            (root / name).mkdir()
            mode = "SubmissionRun" if name == "good" else "PerformanceOnly"
            settings = systems.settings("Server", mode, min_duration_ms=0, min_query_count=700)
            result = lg.run_official(systems.System(answer), systems.Library(), settings, root / name)
            result.save(root / f"{name}.json")
        (root / "ours").mkdir()
        settings = systems.settings("Server", "SubmissionRun", min_duration_ms=0, min_query_count=700)
        logs = systems.log_to(root / "ours")
        ours = lg.run(systems.System(systems.echo), systems.Library(), settings, logs)
        theirs = lg.run_official(systems.System(systems.echo), systems.Library(), settings, root / "good")
        print("\\n".join(lg.side_by_side(ours, theirs)))
        """
    )
    paths = [str(tmp_path), str(Path(lg.__file__).parent.parent), str(Path(__file__).parent)]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    good, broken, twice = (
        json.loads((tmp_path / f"{n}.json").read_text()) for n in ("good", "broken", "twice")
    )
    assert good["valid"], good["reasons"]
    assert good["metrics"]["result_query_count"] == 700
    assert not broken["valid"] and "no such model" in broken["errors"][0]
    assert not twice["valid"] and "twice" in twice["errors"][0]

    def answers(folder: str) -> set:
        entries = json.loads((tmp_path / folder / "mlperf_log_accuracy.json").read_text())
        return {(entry["seq_id"], entry["qsl_idx"], entry["data"]) for entry in entries}

    assert answers("good") == answers("ours") and len(answers("ours")) == 64
    assert "result_completed_samples_per_sec" in done.stdout and "VALID" in done.stdout


def test_without_the_official_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(UserError, match="pip install mlcommons-loadgen"):
        lg.run_official(systems.System(systems.echo), systems.Library(), systems.settings("Server"), tmp_path)
