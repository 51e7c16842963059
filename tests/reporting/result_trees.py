"""Small trees of results in every format, written for the tests, with scores that are known by hand."""

from __future__ import annotations

import json
from pathlib import Path

from mlperf_jax.goals import Goal
from mlperf_jax.results import events

HOSTILE = '"><script>document.title="owned"</script><img src=x onerror=alert(1)>${7*7}\u202e'


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def mllog(key: str, time_ms: float, value=None, **metadata) -> str:
    event = {"namespace": "", "time_ms": time_ms, "event_type": "POINT_IN_TIME", "key": key, "value": value}
    return (
        ":::MLLOG " + json.dumps({**event, "metadata": {"file": "train.py", "lineno": 1, **metadata}}) + "\n"
    )


def mllog_run(
    minutes: float,
    *,
    status: str = "success",
    benchmark: str = "resnet",
    batch_size: int = 4096,
    epochs: float = 36,
    qualities: tuple[float, ...] = (0.3, 0.6, 0.7593),
    start: int = 1_665_000_000_000,
) -> str:
    lines = mllog("submission_benchmark", start, benchmark) + mllog("global_batch_size", start, batch_size)
    lines += "some other output\n" + mllog("init_start", start) + mllog("init_stop", start + 60_000)
    lines += mllog("run_start", start + 60_000)
    for i, quality in enumerate(qualities, 1):
        at = start + 60_000 + i * minutes * 60_000 / len(qualities)
        epoch = round(epochs * i / len(qualities), 3)
        lines += mllog("eval_start", at - 500, epoch_num=epoch)
        lines += mllog("eval_accuracy", at, quality, epoch_num=epoch) + mllog(
            "eval_stop", at, epoch_num=epoch
        )
    return lines + mllog("run_stop", start + 60_000 + minutes * 60_000, status=status)


def mll_run(minutes: float, status: str = "success") -> str:
    """v0.6, with the prefix and the quotes that some logs have."""
    start = 1_558_000_000.0
    quality = '{"value": 0.7601, "metadata": {"epoch_num": 61}}'
    return (
        f':::MLL {start:.3f} run_start: {{"value": null, "metadata": {{"file": "a.py", "lineno": 1}}}}\n'
        f"[1,0]<stdout>::::MLL {start + 30:.3f} eval_accuracy: {quality}\n"
        f":::MLL {start + minutes * 60:.3f} run_stop: "
        f"""{{"value": null, "metadata": {{'lineno': 2, 'status': '{status}'}}}}\n"""
    )


def v05_run(
    minutes: float, success: str | None = "true", quality: float = 0.751, benchmark: str = "resnet"
) -> str:
    start = 1_541_660_914.084755421
    evaluated = f'{{"value": {quality}, "epoch": 61}}'
    said = "" if success is None else f': {{"success": {success}}}'
    return (
        f":::MLPv0.5.0 {benchmark} {start:.9f} (main.py:1) run_start\n"
        f":::MLPv0.5.0 {benchmark} {start:.9f} (main.py:1) eval_target: 0.749\n"
        f":::MLPv0.5.0 {benchmark} {start + 30:.9f} (main.py:1) eval_accuracy: {evaluated}\n"
        f":::MLPv0.5.0 {benchmark} {start + 60 * minutes:.9f} (main.py:1) run_stop{said}\n"
    )


def system(path: Path, **fields) -> Path:
    told = {
        "submitter": "Acme",
        "division": "closed",
        "status": "onprem",
        "system_name": "acme-1",
        "number_of_nodes": "2",
        "host_processors_per_node": "2",
        "host_processor_model_name": "Some CPU",
        "accelerators_per_node": "4",
        "accelerator_model_name": "Some Chip",
        "framework": "JAX 0.10",
    }
    return write(path, json.dumps({**told, **fields}))


def published(root: Path) -> Path:
    """A tree like training_results_v2.1: ResNet of two systems, BERT of one, with rubbish beside them."""
    org = root / "training_results_v2.1" / "Acme"
    system(org / "systems" / "acme-1.json")
    system(org / "systems" / "acme-2.json", system_name="acme-2", accelerators_per_node="8")
    for i, minutes in enumerate((30.0, 31.0, 29.0, 40.0, 28.0)):  # 28 and 40 go: mean 30
        write(org / "results" / "acme-1" / "resnet" / f"result_{i}.txt", mllog_run(minutes))
    for i, minutes in enumerate((30.5, 30.2, 30.4, 30.3, 31.0)):  # 30.4: within 2.5 % of 30
        write(org / "results" / "acme-2" / "resnet" / f"result_{i}.txt", mllog_run(minutes))
    for i in range(10):  # one aborted: it is the slowest; mean of 2..9 is 5.5
        status = "aborted" if i == 9 else "success"
        log = mllog_run(
            i + 1.0, status=status, benchmark="bert", batch_size=448, epochs=2.4e6, qualities=(0.5, 0.72)
        )
        write(org / "results" / "acme-1" / "bert" / f"result_{i}.txt", log)
    write(org / "results" / "acme-1" / "bert" / "README.md", "notes")
    write(org / "results" / "acme-1" / "resnet" / "raw_logs" / "result_0.txt", mllog_run(1.0))
    return root


def ours(root: Path) -> Path:
    """Results of this project as the train command leaves them: mini with two runs, closed with five."""
    for preset, minutes in (("mini", (1.0, 1.2)), ("closed", (50.0, 51.0, 52.0, 53.0, 54.0))):
        top = root / "mini" if preset == "mini" else root
        for i, length in enumerate(minutes):
            run = top / "runs" / "cpu-1x" / "resnet" / f"run_{i}"
            _own_log(top / "results" / "cpu-1x" / "resnet" / f"result_{i}.txt", preset, length)
            command = ["python", "-m", "mlperf_jax.main", "--workload=resnet50", f"--preset={preset}"]
            write(
                run / "status.json", json.dumps({"schema_version": 1, "state": "success", "command": command})
            )
            write(
                run / "config.json",
                json.dumps({"schema_version": 1, "config": {"batch_size": 4096}, "seed": i}),
            )
            write(run / "versions.json", json.dumps({"schema_version": 1, "jax": "0.10.0"}))
    system(
        root / "systems" / "cpu-1x.json",
        submitter="mlperf_jax",
        status="RDI",
        system_name="cpu-1x",
        division="open",
    )
    return root


def _own_log(path: Path, preset: str, minutes: float, *, resumed: bool = False) -> None:
    start = 1_780_000_000_000
    with events.EventLog(path) as log:
        log.start("init_start", time_ms=start)
        events.log_preamble(
            log,
            benchmark="resnet",
            preset=preset,
            system="cpu-1x",
            seed=1,
            global_batch_size=3264,
            gradient_accumulation_steps=1,
            train_samples=1000,
            eval_samples=100,
            goals=[Goal("quality", 0.759, metric="top-1 accuracy")],
            hyperparameters={"opt_name": "lars"},
            cache_clear=(True, "done"),
        )
        log.event("compile_time", 20.0, time_ms=start + 40_000)
        log.end("init_stop", time_ms=start + 60_000)
        begin = start + 60_000
        log.start("run_start", time_ms=begin)
        if resumed:
            log.event("resumed", metadata={"step": 3}, time_ms=begin + 1)
        for i in range(1, 9):
            at = begin + i * minutes * 60_000 / 8
            stats = {
                "throughput": 900 + 10 * i,
                "samples": 100,
                "seconds": minutes * 6,
                "input_wait_seconds": minutes,
            }
            log.event("tracked_stats", stats, {"step": i}, time_ms=at - 1000)
            log.start("eval_start", metadata={"epoch_num": 4.5 * i}, time_ms=at - minutes * 600)
            log.event("eval_accuracy", 0.77 - 0.5 / i**2, {"epoch_num": 4.5 * i}, time_ms=at)
            log.end("eval_stop", metadata={"epoch_num": 4.5 * i}, time_ms=at)
        events.log_run_stop(log, "success")
    # mllog stamps the end with now; a fixed time makes the score known.
    text = path.read_text().splitlines()
    stop = json.loads(text[-1].removeprefix(":::MLLOG "))
    stop["time_ms"] = begin + round(minutes * 60_000)
    path.write_text("\n".join([*text[:-1], ":::MLLOG " + json.dumps(stop)]) + "\n")


def inference(root: Path) -> Path:
    """Logs in LoadGen's format: SingleStream with a trace, Server at two rates, an accuracy run."""
    latencies = [1_000_000 + 10_000 * i for i in range(100)]
    fields = {"result_validity": "VALID", "early_stopping_latency_ss": 1_900_000, "early_stopping_met": True}
    _loadgen(
        root / "sys" / "bert" / "SingleStream" / "performance" / "run_1", "SingleStream", fields, latencies
    )
    write(root / "sys" / "bert" / "SingleStream" / "accuracy" / "accuracy.txt", "F1=90.1\nhash=abc\n")
    for qps, validity in ((100, "VALID"), (200, "INVALID")):
        fields = {
            "effective_target_qps": qps,
            "effective_target_latency_ns": 10_000_000,
            "effective_target_latency_percentile": 0.99,
            "result_validity": validity,
            "result_invalid_reason": "Reduce target QPS to improve latency.",
            "result_completed_samples_per_sec": qps - 1.5,
            "result_99.00_percentile_latency_ns": qps * 70_000,
        }
        folder = root / "sys" / "bert" / "Server" / f"qps{qps}"
        _loadgen(
            folder,
            "Server",
            fields if validity == "INVALID" else {**fields, "result_invalid_reason": ""},
            latencies,
        )
    return root


def _loadgen(
    folder: Path, scenario: str, fields: dict, latencies: list[int], mode: str = "PerformanceOnly"
) -> None:
    told = {"effective_scenario": scenario, "effective_test_mode": mode, **fields}
    metadata = {"is_error": False, "is_warning": False, "file": "a.cc", "line_no": 1, "pid": 1, "tid": 1}
    lines = [
        ":::MLLOG " + json.dumps({"key": k, "value": v, "time_ms": 0.1, "metadata": metadata})
        for k, v in told.items()
    ]
    write(folder / "mlperf_log_detail.txt", "\n".join(lines) + "\n")
    events = ['{"traceEvents":[']
    for i, latency in enumerate(latencies):
        events.append(
            f'{{"name":"Sample","cat":"default","ph":"b","pid":1,"id":{i},"ts":1.0,"args":{{"sample_seq":{i},'
            f'"query_seq":{i},"sample_idx":0,"issue_start_ns":0,"complete_ns":{latency}}}}},'
        )
    write(folder / "mlperf_log_trace.json", "\n".join(events) + '\n{"name":"LastTrace"}\n]}\n')


def hostile(root: Path) -> Path:
    """Every text that a stranger can write is an attempt at markup."""
    name = HOSTILE.replace("/", "\u2215")
    org = root / "training_results_v2.1" / name
    attack = {
        key: HOSTILE for key in ("submitter", "system_name", "accelerator_model_name", "framework", "power")
    }
    system(
        org / "systems" / f"{name}.json",
        **attack,
        cloud_scale=HOSTILE,
        hw_notes="x" * 3000,
        **{HOSTILE: HOSTILE},
    )
    for benchmark in ("resnet", name):
        for i in range(5):
            log = mllog_run(3.0 + i, benchmark=HOSTILE) + mllog("submission_org", 1, HOSTILE)
            write(org / "results" / name / benchmark / f"result_{i}{name}.txt", log)
    write(org / "results" / name / "bert" / f"result_{name}.txt", HOSTILE)
    own = root / "ours" / "results" / name / "resnet"
    for i in range(5):
        labels = mllog("run_labels", 1, [HOSTILE, HOSTILE])
        log = mllog_run(9.0 + i).replace(":::MLLOG", labels.strip() + "\n:::MLLOG", 1)
        write(
            own / f"result_{i}.txt",
            log + mllog("tracked_stats", 1, {"throughput": 5, "input_wait_seconds": 1}),
        )
        run = root / "ours" / "runs" / name / "resnet" / f"run_{i}"
        write(run / "status.json", json.dumps({"command": HOSTILE, "state": HOSTILE}))
        write(run / "config.json", json.dumps({HOSTILE: {HOSTILE: HOSTILE}}))
    fields = {"result_validity": "INVALID", "result_invalid_reason": HOSTILE, "sut_name": HOSTILE}
    place = root / name / "results" / name / name / "Server"
    _loadgen(place, "Server", fields, [5_000_000] * 10)
    write(place / "accuracy.txt", HOSTILE)
    return root
