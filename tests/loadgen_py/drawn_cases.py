"""Random LoadGen settings that both packages can run in a moment."""

from __future__ import annotations

import random

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
MODES = ("PerformanceOnly", "AccuracyOnly", "SubmissionRun")


def draw_case(rng: random.Random, scenario: str, mode: str) -> dict:
    """A case for `recording.record`; the settings that steer the draws are all in play."""
    performance = rng.choice([1, 2, 7, 16, rng.randrange(1, 200)])
    total = rng.choice([1, performance, performance + 1, rng.randrange(1, 400), 2 * performance])
    settings = {
        "scenario": scenario,
        "mode": mode,
        "min_duration_ms": rng.choice([0, 1, 5, 20]),
        "min_query_count": rng.choice([1, 3, 10, 64, rng.randrange(1, 300)]),
        "single_stream_expected_latency_ns": rng.choice([20_000, 100_000, 3_333.3]),
        "multi_stream_expected_latency_ns": rng.choice([50_000, 200_000, 123_456.7]),
        "multi_stream_samples_per_query": rng.choice([1, 2, 3, 8, 13]),
        "server_target_qps": rng.choice([8_000, 20_000, 33_333.3]),
        "server_target_latency_ns": 10**9,
        "offline_expected_qps": rng.choice([1_000, 20_000, 54_321.9]),
        "qsl_rng_seed": rng.getrandbits(64),
        "sample_index_rng_seed": rng.getrandbits(64),
        "schedule_rng_seed": rng.getrandbits(64),
        "accuracy_log_rng_seed": rng.getrandbits(64),
    }
    if rng.random() < 0.3:
        settings["performance_sample_count_override"] = rng.randrange(1, 2 * performance + 1)
    if rng.random() < 0.2:
        settings["accuracy_sample_count_override"] = rng.randrange(1, total + 20)
    if rng.random() < 0.3:
        settings["sample_concatenate_permutation"] = True
    elif rng.random() < 0.2:
        settings["performance_issue_same"] = True
    elif rng.random() < 0.2 and _covers(settings, performance, total):
        settings["performance_issue_unique"] = True
    if rng.random() < 0.5:
        settings["accuracy_log_probability"] = rng.choice([0.05, 0.5, 1.0])
    if rng.random() < 0.3:
        settings["accuracy_log_sampling_target"] = rng.randrange(1, 50)
    if rng.random() < 0.15:
        settings["max_query_count"] = rng.randrange(1, 100)
    if settings.get("performance_issue_same"):
        loaded = min(settings.get("performance_sample_count_override", performance), total)
        # Accuracy sets may be smaller; the official package reads past their end.
        settings["performance_issue_same_index"] = rng.randrange(loaded) if mode == "PerformanceOnly" else 0
    return {"settings": settings, "total": total, "performance": performance, "trace": scenario == "Server"}


def _covers(settings: dict, performance: int, total: int) -> bool:
    """Whether the loaded set has as many samples as it says: the official package crashes otherwise."""
    return settings.get("performance_sample_count_override", performance) <= total
