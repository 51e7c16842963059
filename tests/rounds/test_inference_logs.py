"""Inference logs: written for the tests, and by the official LoadGen itself."""

from __future__ import annotations

import array
import json

import numpy as np
import pytest

from mlperf_jax.judging.tree import judge_tree
from mlperf_jax.reporting import details
from mlperf_jax.reporting.figures import latency_histogram, percentile_curve, server_curve
from mlperf_jax.rounds import inference_limits, inference_logs
from mlperf_jax.rounds.inference_logs import read_inference
from tests.reporting import result_trees as trees


def test_names_verdicts_and_figures(tmp_path):
    runs, problems = read_inference([trees.inference(tmp_path / "Org" / "results").parent.parent])
    assert problems == []
    single = next(run for run in runs if run.scenario == "SingleStream")
    assert (single.submitter, single.system, single.model) == ("Org", "sys", "bert")
    assert (single.valid, single.value, single.unit) == (True, pytest.approx(1.9), "ms")
    assert single.accuracy == ("F1=90.1", "hash=abc")
    assert len(single.latencies) == 100 and single.latencies[[0, -1]] == pytest.approx([1e-3, 1.99e-3])
    slow = next(run for run in runs if run.target_qps == 200)
    assert (slow.valid, slow.bound, slow.server_p99) == (False, 0.01, pytest.approx(0.014))
    assert "Reduce target QPS" in slow.reason
    assert single.labels == ("unverified, not reviewed by MLCommons",)
    for svg in (
        latency_histogram(single),
        percentile_curve(slow),
        server_curve([r for r in runs if r.bound]),
    ):
        assert svg.startswith("<svg") and "script" not in svg


def test_our_runs_say_themselves_what_they_are(tmp_path):
    trees.inference(tmp_path / "mini" / "inference")
    record = {
        "labels": ["mini: x"],
        "metric": "F1",
        "quality": 0.9,
        "quality_target": 0.8,
        "versions": {"jax": "0.10"},
    }
    record["reasons"] = [{"condition": "latency", "text": "7 queries were late; ask for fewer."}]
    for log in tmp_path.rglob("mlperf_log_detail.txt"):
        trees.write(log.parent / "result.json", json.dumps({"schema_version": 1, **record}))
    runs, _ = read_inference([tmp_path])
    assert {(run.system, run.model) for run in runs} == {("sys", "bert")}
    assert {run.labels for run in runs} == {("mini: x",)}
    assert {run.accuracy for run in runs} == {("F1 0.9, target 0.8",)}
    assert {run.reason for run in runs} == {"7 queries were late; ask for fewer."}
    assert runs[0].facts == (("versions.jax", "0.10"),)


def test_latencies_of_tokens_are_told_as_both_define_them(tmp_path):
    trees.inference(tmp_path / "mini" / "inference")
    (log,) = (path for path in tmp_path.rglob("mlperf_log_detail.txt") if "qps100" in path.parts)
    more = {inference_limits.TTFT: 12_000_000, inference_limits.TPOT: 3_000_000}
    lines = "".join(
        f":::MLLOG {json.dumps({'key': key, 'value': value, 'metadata': {'is_error': False}})}\n"
        for key, value in more.items()
    )
    log.write_text(log.read_text() + lines)
    told = "99th percentiles: first token 12 ms, each other 3 ms"
    for record, end in (
        ({}, ""),
        ({"endpoints_tpot_99_ns": 3.5e6}, " (3.5 ms as mlcommons/endpoints has it)"),
    ):
        trees.write(log.parent / "result.json", json.dumps(record))
        runs, _ = read_inference([tmp_path])
        (run,) = (run for run in runs if run.path == log.parent)
        assert run.tokens == told + end and told + end in details.inference_details(run, "x")
        assert {other.tokens for other in runs if other is not run} == {""}


def test_what_cannot_be_read_is_listed(tmp_path):
    trees.write(tmp_path / "a" / "mlperf_log_detail.txt", "nothing")
    trees.write(tmp_path / "b" / "mlperf_log_detail.txt", ':::MLLOG {"key": []}\n:::MLLOG [\n')
    runs, problems = read_inference([tmp_path])
    assert runs == [] and [p.reason for p in problems] == ["holds no scenario that LoadGen has"] * 2


def test_without_a_trace_the_logged_percentiles_remain(tmp_path):
    trees.inference(tmp_path)
    for trace in tmp_path.rglob("mlperf_log_trace.json"):
        trace.unlink()
    run = next(run for run in read_inference([tmp_path])[0] if run.bound)
    assert (
        len(run.latencies) == 0 and latency_histogram(run) == "" and percentile_curve(run).startswith("<svg")
    )


def test_against_the_official_loadgen(tmp_path):
    loadgen = pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    settings = loadgen.TestSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.SingleStream, loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = 10, 100

    def issue(samples):
        answer = array.array("B", b"1234")
        place = answer.buffer_info()[0]
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(s.id, place, 4) for s in samples])

    sut = loadgen.ConstructSUT(issue, lambda: None)
    qsl = loadgen.ConstructQSL(8, 8, lambda _: None, lambda _: None)
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(tmp_path), False
    logs = loadgen.LogSettings()
    logs.log_output, logs.enable_trace = output, True
    loadgen.StartTestWithLogSettings(sut, qsl, settings, logs)
    loadgen.DestroyQSL(qsl)
    loadgen.DestroySUT(sut)
    (run,) = read_inference([tmp_path])[0]
    summary = (tmp_path / "mlperf_log_summary.txt").read_text()
    assert (run.scenario, run.valid) == ("SingleStream", "Result is : VALID" in summary)
    # The latencies of the trace give the percentiles that LoadGen itself logged: sorted[int(n * p)].
    n = len(run.latencies)
    for share, seconds in run.percentiles:
        assert run.latencies[int(n * share)] == pytest.approx(seconds, abs=1e-9)
    assert np.all(np.diff(run.latencies) >= 0)


def test_the_results_at_the_end_of_a_long_log_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(inference_logs, "_MOST_BYTES", 10_000)
    trees.inference(tmp_path)
    path = tmp_path / "sys" / "bert" / "Server" / "qps100" / "mlperf_log_detail.txt"
    lines = path.read_text().splitlines(keepends=True)
    warning = json.dumps(
        {"key": "warning_generic", "value": "slow", "time_ms": 1.0, "metadata": {"is_error": True}}
    )
    errors = trees.mllog("num_errors", 9.0, 1000)
    path.write_text("".join([*lines[:3], f":::MLLOG {warning}\n" * 1000, *lines[3:], errors]))
    run = next(run for run in read_inference([tmp_path])[0] if run.path == path.parent)
    assert (run.scenario, run.valid, run.value, run.errors) == ("Server", True, 98.5, 1000)


def test_two_runs_in_one_detail_log_are_no_run(tmp_path):
    trees.inference(tmp_path)
    path = tmp_path / "sys" / "bert" / "Server" / "qps200" / "mlperf_log_detail.txt"
    path.write_text(path.read_text() + (path.parents[1] / "qps100" / path.name).read_text())
    runs, problems = read_inference([tmp_path])
    assert [run.target_qps for run in runs if run.bound] == [100]
    assert [(p.path, p.reason) for p in problems] == [(path, "holds two runs in one file")]
    assert [f.text for f in judge_tree(tmp_path).findings if "two runs" in f.text] == [
        f"{path} holds two runs in one file (another begins in line 11)."
    ]
