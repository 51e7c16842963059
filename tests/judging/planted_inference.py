"""A clean closed submission of inference, and ways to spoil it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAMPLES = 50_000
SEEDS = {
    "qsl_rng_seed": 2085463073848966840,
    "sample_index_rng_seed": 2747215439041700203,
    "schedule_rng_seed": 16159082839903944936,
}
SCORES = {
    "SingleStream": ("early_stopping_latency_ss", 300_000),
    "MultiStream": ("early_stopping_latency_ms", 2_000_000),
    "Server": ("result_completed_samples_per_sec", 900.5),
    "Offline": ("result_samples_per_second", 5000.25),
}
SYSTEM_FIELDS = """division submitter system_type status system_name number_of_nodes host_processor_model_name
    host_processors_per_node host_processor_core_count host_memory_capacity host_memory_configuration
    host_storage_capacity host_storage_type host_networking host_network_card_count host_networking_topology
    accelerators_per_node accelerator_model_name accelerator_memory_capacity accelerator_host_interconnect
    accelerator_memory_configuration accelerator_interconnect cooling framework operating_system
    other_software_stack host_processor_frequency host_processor_caches host_processor_interconnect
    accelerator_frequency accelerator_interconnect_topology accelerator_on-chip_memories hw_notes sw_notes
    system_type_detail"""
TEST01 = {"accuracy_log_rng_seed": 720381539243781796, "accuracy_log_sampling_target": 4096}
TEST04 = {
    "performance_issue_unique": False,
    "performance_issue_same": True,
    "performance_issue_same_index": 3,
}


def fields(scenario: str, mode: str, **changed: Any) -> dict[str, Any]:
    """The events of a clean detail log, key -> value."""
    told: dict[str, Any] = {
        "loadgen_version": "6.0.17",
        "sut_name": "acme",
        "qsl_name": "imagenet",
        "qsl_reported_total_count": SAMPLES,
        "qsl_reported_performance_count": 1024,
        "effective_scenario": scenario,
        "effective_test_mode": mode,
        "effective_samples_per_query": {"Offline": 3_300_000, "MultiStream": 8}.get(scenario, 1),
        "effective_target_latency_ns": 15_000_000 if scenario == "Server" else 0,
        "effective_min_duration_ms": 600_000,
        "effective_min_query_count": 1001,
        **{f"effective_{name}": seed for name, seed in SEEDS.items()},
        "effective_performance_sample_count": 1024,
        "effective_accuracy_sample_count": SAMPLES,
        "effective_sample_concatenate_permutation": False,
        "effective_accuracy_log_rng_seed": 0,
        "effective_accuracy_log_sampling_target": 0,
        "effective_performance_issue_unique": False,
        "effective_performance_issue_same": False,
        "effective_performance_issue_same_index": 0,
        "power_begin": "begin",
    }
    if mode == "PerformanceOnly":
        told |= {
            "generated_query_count": 2000,
            "result_validity": "VALID",
            "result_perf_constraints_met": True,
            "result_min_duration_met": True,
            "result_min_queries_met": True,
            "early_stopping_met": True,
            "result_query_count": 2000,
            SCORES[scenario][0]: SCORES[scenario][1],
            "result_mean_latency_ns": 250_000,
            "result_50.00_percentile_latency_ns": 240_000,
            "result_90.00_percentile_latency_ns": 290_000,
            "result_99.00_percentile_latency_ns": 310_000,
        }
    return {**told, "num_errors": 0, **changed}


def detail(told: dict[str, Any], errors: tuple[str, ...] = ()) -> str:
    lines = []
    metadata = {"is_error": False, "is_warning": False, "file": "a.cc", "line_no": 1, "pid": 1, "tid": 1}
    for i, (key, value) in enumerate(told.items()):
        at = 600_100.5 + i if key.startswith(("result_", "early", "num_", "power_end")) else 0.5 + i
        event = {
            "key": key,
            "value": value,
            "time_ms": at,
            "namespace": "mlperf::logging",
            "event_type": "POINT_IN_TIME",
        }
        lines.append(":::MLLOG " + json.dumps({**event, "metadata": metadata}))
    for text in errors:
        event = {
            "key": "error_runtime",
            "value": text,
            "time_ms": 600_200.0,
            "metadata": {**metadata, "is_error": True},
        }
        lines.append(":::MLLOG " + json.dumps(event))
    return "\n".join(lines) + "\n"


def summary(told: dict[str, Any]) -> str:
    lines = ["=" * 48, "MLPerf Results Summary", "=" * 48, f"SUT name : {told['sut_name']}"]
    scenario = told["effective_scenario"]
    lines.append(f"Scenario : {scenario}")
    score = told.get(SCORES[scenario][0])
    if scenario == "Server":
        lines.append(f"Completed samples per second    : {score}")
    if scenario == "Offline":
        lines.append(f"Samples per second: {score}")
    if "result_validity" in told:
        lines.append(f"Result is : {told['result_validity']}")
    if scenario == "SingleStream":
        lines += ["Early Stopping Result:", f" * Early stopping 90th percentile estimate: {score}"]
    if scenario == "MultiStream":
        lines += ["Early Stopping Result:", f" * Early stopping 99th percentile estimate: {score}"]
    return (
        "\n".join(
            [*lines, "", "No warnings encountered during test.", "", "No errors encountered during test."]
        )
        + "\n"
    )


def accuracy_log(
    samples=range(SAMPLES), answer: Callable[[int], str] = lambda i: f"{i % 1000:04x}0000"
) -> str:
    rows = [
        f'{{ "seq_id" : {n}, "qsl_idx" : {i}, "data" : "{answer(i).upper()}" }}'
        for n, i in enumerate(samples)
    ]
    return "[\n" + ",\n".join(rows) + "\n]\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def run(folder: Path, told: dict[str, Any], errors: tuple[str, ...] = ()) -> None:
    write(folder / "mlperf_log_detail.txt", detail(told, errors))
    write(folder / "mlperf_log_summary.txt", summary(told))


def clean_submission(root: Path, division: str = "closed") -> Path:
    """Writes a submission of ResNet on an edge system; returns .../results/acme-1/resnet50."""
    org = root / division / "Acme"
    write(org / "src" / "README.md", "source code\n")
    told = dict.fromkeys(SYSTEM_FIELDS.split(), "something")
    told |= {"division": division, "submitter": "Acme", "status": "available", "system_type": "edge"}
    told |= {"number_of_nodes": "1", "host_processors_per_node": "2", "accelerators_per_node": "8"}
    write(org / "systems" / "acme-1.json", json.dumps(told))
    model = org / "results" / "acme-1" / "resnet50"
    whole = accuracy_log()
    digest = hashlib.sha256(whole.encode()).hexdigest()
    cut = whole[:4096] + "\n\n...\n\n" + whole[-4096:]
    for scenario in ("SingleStream", "MultiStream", "Offline"):
        folder = model / scenario
        names = ("input_data_types", "retraining", "starting_weights_filename")
        names += ("weight_data_types", "weight_transformations")
        write(folder / "measurements.json", json.dumps(dict.fromkeys(names, "fp32")))
        write(folder / "user.conf", "# nothing\n")
        write(folder / "README.md", "how to run\n")
        run(folder / "performance" / "run_1", fields(scenario, "PerformanceOnly"))
        run(folder / "accuracy", fields(scenario, "AccuracyOnly"))
        write(folder / "accuracy" / "mlperf_log_accuracy.json", cut)
        write(
            folder / "accuracy" / "accuracy.txt",
            f"accuracy=76.456%, good=38228, total=50000\nhash={digest}\n",
        )
        for test, changed in (("TEST01", TEST01), ("TEST04", TEST04)):
            changed = {f"effective_{name}": value for name, value in changed.items()}
            run(folder / test / "performance" / "run_1", fields(scenario, "PerformanceOnly", **changed))
            write(folder / test / "verify_performance.txt", "TEST PASS\n")
        write(folder / "TEST01" / "verify_accuracy.txt", "TEST PASS\n")
        write(folder / "TEST01" / "accuracy" / "mlperf_log_accuracy.json", cut)
    return model


def own_results(root: Path, samples=range(100), **changed: Any) -> Path:
    """Runs of this project at home, Offline: performance and accuracy; returns .../resnet50/Offline."""
    folder = root / "mini" / "inference" / "cpu-1x" / "resnet50" / "Offline"
    counts = {"qsl_reported_total_count": 100, "effective_accuracy_sample_count": 100}
    run(folder / "performance" / "run_1", fields("Offline", "PerformanceOnly", **counts))
    run(folder / "accuracy", fields("Offline", "AccuracyOnly", **counts))
    log = accuracy_log(samples)
    write(folder / "accuracy" / "mlperf_log_accuracy.json", log)
    labels = ["mini: not MLPerf's data or model", "unverified, not reviewed by MLCommons"]
    shared = {"schema_version": 1, "labels": labels, "model": "run_0, step 9"}
    write(
        folder / "performance" / "run_1" / "result.json",
        json.dumps({**shared, "kind": "performance", "valid": True}),
    )
    judged = {"metric": "top-1 accuracy", "quality": 0.9, "quality_target": 0.89}
    digest = hashlib.sha256(log.encode()).hexdigest()
    told = {**shared, "kind": "accuracy", "valid": True, **judged, "accuracy_log_sha256": digest, **changed}
    write(folder / "accuracy" / "result.json", json.dumps(told))
    return folder
