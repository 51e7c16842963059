"""A system under test that misbehaves: a clear error, INVALID, complete logs, no dead lock, nothing lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import systems

import loadgen_py as lg
from loadgen_py import issue

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")


def _run(tmp_path: Path, answer, scenario: str, mode: str = "PerformanceOnly", **fields) -> lg.Result:
    result = lg.run(
        systems.System(answer),
        systems.Library(),
        systems.settings(scenario, mode, **fields),
        systems.log_to(tmp_path),
        audit_config=tmp_path / "audit.config",
    )
    json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    assert (tmp_path / "mlperf_log_summary.txt").read_text().endswith("encountered. See detailed log.\n")
    return result


def _check_invalid(result: lg.Result, tmp_path: Path, capfd, words: str) -> None:
    assert not result.valid
    assert any(words in error for error in result.errors), result.errors
    assert any(words in error for error in systems.errors(tmp_path))
    assert words in capfd.readouterr().err
    assert "Result is : INVALID" in (tmp_path / "mlperf_log_summary.txt").read_text()
    assert any(words in reason.text for reason in result.reasons)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("mode", ["PerformanceOnly", "AccuracyOnly"])
def test_answers_twice(scenario, mode, tmp_path, capfd):
    def answer(responses, ids, indices):
        systems.echo(responses, ids, indices)
        if ids[0] % 7 == 0 or scenario == "Offline":
            systems.echo(responses, ids, indices)

    result = _run(tmp_path, answer, scenario, mode)
    _check_invalid(result, tmp_path, capfd, "twice")
    if mode == "AccuracyOnly":
        entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
        assert sorted(entry["seq_id"] for entry in entries) == list(range(64))


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("wrong", [10**9, -5])
def test_answers_for_an_unknown_id(scenario, wrong, tmp_path, capfd):
    def answer(responses, ids, indices):
        responses.complete([wrong])
        systems.echo(responses, ids, indices)

    result = _run(tmp_path, answer, scenario)
    _check_invalid(result, tmp_path, capfd, "Actual id")
    assert result.metrics["result_query_count"] > 0


@pytest.mark.parametrize("as_ids", [list, np.array, tuple], ids=["list", "array", "tuple"])
@pytest.mark.parametrize("size", [3, 500])
def test_the_same_id_twice_in_one_call(as_ids, size, tmp_path, capfd):
    def answer(responses, ids, indices):
        responses.complete(as_ids(list(ids) + [ids[0]]))

    result = _run(tmp_path, answer, "Offline", min_query_count=size, offline_expected_qps=1)
    _check_invalid(result, tmp_path, capfd, "twice")
    assert result.metrics["result_query_count"] == 1


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("mode", ["PerformanceOnly", "AccuracyOnly"])
def test_raises(scenario, mode, tmp_path, capfd):
    asked = []

    def answer(responses, ids, indices):
        asked.append(len(ids))
        if len(asked) == (1 if scenario == "Offline" else 4):
            raise ValueError("no such model")
        systems.echo(responses, ids, indices)

    result = _run(tmp_path, answer, scenario, mode)
    _check_invalid(result, tmp_path, capfd, "raised ValueError: no such model")
    if mode == "AccuracyOnly" and scenario != "Offline":
        entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
        assert len(entries) == sum(asked[:3])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_never_answers(scenario, tmp_path, capfd):
    def answer(responses, ids, indices):
        last = ids[-1]
        responses.complete([i for i in ids if i != last or (i % 5 and scenario != "Offline")])

    result = _run(tmp_path, answer, scenario, sut_timeout_ms=200)
    _check_invalid(result, tmp_path, capfd, "no answer for 0.2 s")


@pytest.mark.timing
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_hangs_in_the_call(scenario, tmp_path, capfd):
    release = threading.Event()
    seen = []

    def answer(responses, ids, indices):
        seen.append(len(ids))
        if len(seen) == (1 if scenario == "Offline" else 3):
            release.wait(20)
        systems.echo(responses, ids, indices)

    result = _run(tmp_path, answer, scenario, sut_timeout_ms=200)
    release.set()
    _check_invalid(result, tmp_path, capfd, "no answer for 0.2 s")
    if scenario != "Offline":
        assert result.metrics["result_query_count"] == 3


@pytest.mark.timing
def test_an_idle_server_is_not_timed_out(tmp_path):
    settings = dict(server_target_qps=2, min_query_count=2, min_duration_ms=600, sut_timeout_ms=100)
    result = _run_clean(tmp_path, systems.echo, "Server", schedule_rng_seed=3, **settings)
    assert not result.errors


def _run_clean(tmp_path: Path, answer, scenario: str, mode: str = "PerformanceOnly", **fields) -> lg.Result:
    return lg.run(
        systems.System(answer),
        systems.Library(),
        systems.settings(scenario, mode, **fields),
        systems.log_to(tmp_path),
        audit_config=tmp_path / "audit.config",
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_answers_from_many_threads_at_once(scenario, tmp_path):
    """All answers count, once each, whichever thread brings them."""

    def answer(responses, ids, indices):
        parts = [ids[k::4] for k in range(4)]
        threads = [threading.Thread(target=responses.complete, args=(part,)) for part in parts if len(part)]
        for thread in threads:
            thread.start()

    fields = dict(
        server_target_qps=300, server_target_latency_ns=10**9, min_duration_ms=0, min_query_count=700
    )
    if scenario == "Server":
        fields["min_query_count"] = 60
    result = _run_clean(tmp_path, answer, scenario, **fields)
    assert not result.errors
    if scenario != "Server":  # too few queries for early stopping
        assert result.valid, result.reasons


def test_threads_that_fight_over_the_same_samples(tmp_path, capfd):
    def answer(responses, ids, indices):
        threads = [threading.Thread(target=responses.complete, args=(list(ids),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    result = _run(tmp_path, answer, "Offline", min_query_count=50, offline_expected_qps=1)
    _check_invalid(result, tmp_path, capfd, "twice")
    assert sum("twice" in error for error in systems.errors(tmp_path)) >= 8
    assert any("more errors" in error for error in systems.errors(tmp_path))


def test_a_late_answer_finds_nothing_in_the_next_run(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    late = []

    def hold(responses, ids, indices):
        late.append((responses, ids))

    assert not _run(tmp_path / "first", hold, "SingleStream", sut_timeout_ms=100).valid

    def answer(responses, ids, indices):
        old, old_ids = late[0]
        old.complete(old_ids)
        responses.complete(ids)

    assert _run_clean(tmp_path / "second", answer, "SingleStream").valid


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ctrl_c_before_the_first_query(scenario, tmp_path, monkeypatch):
    def interrupt(phase):
        raise KeyboardInterrupt

    monkeypatch.setattr(issue, "_start", interrupt)
    result = _run(tmp_path, systems.echo, scenario)
    assert result.interrupted and not result.valid
    assert systems.values(tmp_path, "result_query_count") == [0]


def test_ctrl_c_leaves_complete_logs(tmp_path):
    script = textwrap.dedent(
        """
        import signal, sys, time
        sys.path[:0] = [sys.argv[2], sys.argv[3]]
        import systems, loadgen_py as lg
        # A shell's background jobs, as the tests may be one, begin with Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def answer(responses, ids, indices):
            if system.queries == 200:
                print("started", flush=True)
            time.sleep(0.001)
            systems.echo(responses, ids, indices)
        settings = systems.settings(sys.argv[4], min_duration_ms=60_000, min_query_count=10**5)
        settings.single_stream_expected_latency_ns = 10**6
        settings.sut_timeout_ms = int(sys.argv[5])
        settings.mode = lg.TestMode[sys.argv[6]]
        library = systems.Library(10**5, 10**5)
        system = systems.System(answer)
        result = lg.run(system, library, settings, systems.log_to(sys.argv[1]))
        sys.exit(3 if result.interrupted and not result.valid else 4)
        """
    )
    root = Path(lg.__file__).parent.parent
    running = []
    runs = [("SingleStream", 0, "PerformanceOnly"), ("Server", 9000, "PerformanceOnly")]
    runs.append(("SingleStream", 0, "AccuracyOnly"))
    for number, (scenario, timeout_ms, mode) in enumerate(runs):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [
            sys.executable,
            "-c",
            script,
            folder,
            root,
            Path(__file__).parent,
            scenario,
            timeout_ms,
            mode,
        ]
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        running.append((folder, mode, process))
    for folder, mode, process in running:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=300)
        assert process.returncode == 3, error
        assert "Interrupted by the user" in error
        assert systems.values(folder, "loadgen_py_interrupted") == [True]
        assert "Interrupted by the user" in systems.errors(folder)
        summary = (folder / "mlperf_log_summary.txt").read_text()
        assert "Result is : INVALID" in summary
        entries = json.loads((folder / "mlperf_log_accuracy.json").read_text())
        if mode == "AccuracyOnly":
            assert len(entries) > 100  # what had completed is there
        else:
            assert systems.values(folder, "result_validity") == ["INVALID"]
            assert systems.values(folder, "result_query_count")[0] > 0
