"""From the latencies that the official package measured, live, our figures and verdict are its own."""

from __future__ import annotations

import random
import re

import numpy as np
import official_runs
import pytest

from loadgen_py.figures import result_fields, summary_lines
from loadgen_py.settings import TestMode, TestScenario, TestSettings, resolve
from loadgen_py.statistics import Measurement, judge

pytest.importorskip("mlperf_loadgen", reason="the official package is the judge")
pytestmark = pytest.mark.timing  # a busy machine leaves fewer runs VALID than the tests want to have seen

PERCENTILES = (0.5, 0.9, 0.95, 0.97, 0.99, 0.999)
COUNTS = (1, 2, 43, 44, 45, 63, 64, 65, 90, 91, 130, 219, 459, 460, 661, 662, 1000, 1793, 4000, 6636, 9000)


def _case(rng: random.Random, scenario: str, count: int, percentile: float, *, tokens: bool = False) -> dict:
    bound_ns = rng.choice([20_000, 60_000, 200_000, 10**9])
    settings = {
        "scenario": scenario,
        "mode": "PerformanceOnly",
        "min_duration_ms": rng.choice([0, 0, 1, 10, 60]) if count < 1000 else 0,
        "min_query_count": count,
        "max_query_count": 0 if rng.random() < 0.8 else max(count * 2 // 3, 1),
        "single_stream_expected_latency_ns": 10**7,
        "multi_stream_expected_latency_ns": 10**7,
        "multi_stream_samples_per_query": rng.choice([1, 2, 8]) if count < 3000 else 1,
        "server_target_qps": 50_000,
        "offline_expected_qps": 10_000,
        "server_target_latency_ns": bound_ns,
        "ttft_latency": rng.choice([bound_ns, 10**8]),
        "tpot_latency": rng.choice([bound_ns // 20, 10**8]),
        "accuracy_log_probability": 1.0,
        "sample_index_rng_seed": rng.getrandbits(32),
        "use_token_latencies": tokens,
        "infer_token_latencies": rng.random() < 0.2,
        "token_latency_scaling_factor": rng.randrange(1, 100),
    }
    for name in ("single_stream", "multi_stream", "server"):
        settings[f"{name}_target_latency_percentile"] = percentile
    mean_us = rng.choice([0, 3, 15]) if count < 3000 else 0
    return {
        "settings": settings,
        "total": 50,
        "performance": 50,
        "trace": True,
        "mean_us": mean_us,
        "seed": count,
    }


def _cases() -> list[dict]:
    rng = random.Random(8)
    cases = []
    for count in COUNTS:
        for percentile in PERCENTILES if count < 5000 else (0.9, 0.999):
            for scenario in ("SingleStream", "Server") if count < 5000 else ("SingleStream",):
                cases.append(_case(rng, scenario, count, percentile))
    for count in (1, 64, 219, 662, 1500):
        cases.append(_case(rng, "MultiStream", count, rng.choice(PERCENTILES)))
        cases.append(_case(rng, "Offline", count, 0.9))
    for count in (2, 64, 300, 700):
        for scenario in ("SingleStream", "MultiStream", "Server"):
            cases.append(_case(rng, scenario, count, rng.choice((0.5, 0.9, 0.99)), tokens=True))
    return cases


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> list[tuple]:
    """(case, official record, our verdict on the official latencies)."""
    cases = _cases()
    records = official_runs.run_official(cases, tmp_path_factory.mktemp("official"))
    return [
        (case, theirs, judge(_settings(case), _measured(case, theirs)))
        for case, theirs in zip(cases, records, strict=True)
    ]


def _settings(case: dict):
    names = dict(case["settings"])
    names["scenario"] = TestScenario[names["scenario"]]
    names["mode"] = TestMode[names["mode"]]
    return resolve(TestSettings(**names), case["performance"], case["total"])


def _measured(case: dict, theirs: dict) -> Measurement:
    """The measurement that the official trace holds; the start is the first schedule, as good as."""
    scenario = case["settings"]["scenario"]
    samples = [sample for sample in theirs["trace"] if sample["kind"] == "Sample"]
    latencies = np.array([sample["latency"] for sample in samples])
    scheduled = np.array([sample["scheduled"] for sample in samples])
    start, last = scheduled[0], samples[-1]
    done = scheduled + latencies
    last_query = np.array([sample["query"] == last["query"] for sample in samples])
    tokens = {}
    if case["settings"]["use_token_latencies"]:
        counts = {entry["seq_id"]: entry["token_count"] for entry in theirs["accuracy"]}
        if scenario == "Server":
            first = np.array([theirs["first_tokens"][sample["ts"]] for sample in samples])
        else:
            first = np.array([sample["latency"] for sample in theirs["trace"] if sample["kind"] == "Token"])
        n_tokens = np.array([counts[sample["seq"]] for sample in samples])
        per_token = (latencies - first) // (n_tokens - 1)
        tokens = {
            "first_token_latencies": first,
            "time_per_output_token": per_token,
            "tokens_per_sample": n_tokens,
        }
    queries = None
    if scenario == "MultiStream":
        size = case["settings"]["multi_stream_samples_per_query"]
        queries = latencies.reshape(-1, size).max(axis=1)
    return Measurement(
        sample_latencies=latencies,
        query_latencies=queries,
        queries_issued=len(theirs["issued"]),
        max_latency_s=int(latencies.max()) / 1e9,
        final_scheduled_s=int(last["scheduled"] - start) / 1e9,
        final_issued_s=int(last["scheduled"] + last["issue_delay"] - start) / 1e9,
        final_done_s=int(done[last_query].max() - start) / 1e9,
        **tokens,
    )


# SingleStream and MultiStream start a few us before the first query: no trace says when exactly.
_FROM_START = (
    "result_qps_with_loadgen_overhead",
    "result_token_throughput_with_loadgen_overhead",
    "result_completed_tokens_per_second",
)


def test_every_result_field(judged):
    verdicts = set()
    for case, theirs, verdict in judged:
        fields = result_fields(verdict, verdict.valid)
        scenario = case["settings"]["scenario"]
        for key, (expected,) in (
            (k, v) for k, v in theirs["detail"].items() if k.startswith(("result_", "early_"))
        ):
            ours = fields[key]
            if expected is None:
                assert not np.isfinite(ours), (key, case)
            elif isinstance(ours, float):
                loose = key in _FROM_START and scenario in ("SingleStream", "MultiStream")
                if loose and len(theirs["issued"]) < 100:
                    continue
                assert ours == pytest.approx(expected, rel=0.1 if loose else 1e-5), (key, case)
            else:
                assert ours == expected, (key, case)
        assert set(fields) == {k for k in theirs["detail"] if k.startswith(("result_", "early_"))}
        verdicts.add((scenario, case["settings"]["use_token_latencies"], fields["result_validity"]))
    assert len(verdicts) >= 12  # nearly all scenarios were seen VALID and INVALID


def test_early_stopping_over_a_grid(judged):
    texts = set()
    for case, theirs, verdict in judged:
        if not case["settings"]["use_token_latencies"]:
            text = verdict.early_stopping.texts[0].replace("\n", " ")
            assert [text] == theirs["detail"]["early_stopping_result"], case
            texts.add(re.sub(r"estimate: \d+", "", text))
    assert len(texts) > 100


_NUMBER = re.compile(r"-?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf)")


def test_the_summary_line_for_line(judged):
    """Figures are compared as numbers, everything else as text."""
    for case, theirs, verdict in judged:
        expected = theirs["summary"].split("\nNo warnings")[0].splitlines()
        expected = [line for line in expected if "encountered" not in line]
        while not expected[-1]:
            expected.pop()
        ours = "\n".join(summary_lines(verdict, verdict.valid, "PySUT")).splitlines()
        assert len(ours) == len(expected), case
        for our_line, line in zip(ours, expected, strict=True):
            assert _NUMBER.sub("#", our_line) == _NUMBER.sub("#", line), case
            if line.startswith(("QPS", "TPS")) or "ompleted tokens" in line:
                continue  # from the start on, which no trace says exactly
            numbers = [float(number.lstrip("-")) for number in _NUMBER.findall(line)]
            found = [float(number.lstrip("-")) for number in _NUMBER.findall(our_line)]
            assert found == pytest.approx(numbers, rel=1e-5, nan_ok=True), (line, case)
