"""Trains a mini to its target with several seeds, one after the other, serves the last, and records both.

    python -m benchmarks.record_convergence transformer --trivial="copying the source: BLEU 0.044"
    python -m benchmarks.record_convergence transformer --seed=11 --runs=3 --data_dir=DATA
    python -m benchmarks.record_convergence transformer --seed=4 --runs=5 --more
    python -m benchmarks.record_convergence bert --unserved
    python -m benchmarks.record_convergence bert_qa --after=bert
    python -m benchmarks.record_convergence llama31_8b --trained=RESULTS
    python -m benchmarks.record_convergence llama2_70b_lora --imported=WEIGHTS --qps=1.5

writes benchmarks/convergence/WORKLOAD_mini.json and .md from the result logs, with the most memory that a
process held, and how busy the machine was with other work. Serving is `--scenario=all` of the same folder.
`--more` only trains, and adds its seeds to the record that stands; each run keeps the cores that it had. What begins
with another's model has that trained before, with its first seed and in the same folder; time and memory are of both. `--trained` trains
nothing: what was trained into that folder is served, and added to the record that stands. `--imported` serves weights
that `mlperf_jax.import_weights` wrote, and adds that beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from benchmarks import records
from mlperf_jax.goals import Quality
from mlperf_jax.results.events import Event, read_events

FOLDER = Path(__file__).parent / "convergence"
LABEL = "mini: not MLPerf's data or model; unverified, not reviewed by MLCommons"
SCENARIOS = ("SingleStream", "MultiStream", "Server", "Interactive", "Offline")
TOKENS = (
    "result_completed_tokens_per_second",
    "result_first_token_99.00_percentile_latency_ns",
    "result_time_per_output_token_99.00_percentile_ns",
    "result_tokens_per_second",
)
"""Of answers token by token; the last is Offline's alone."""
PACKAGES = ("jax", "flax", "optax", "grain", "orbax-checkpoint", "numpy")


def run(log: Path) -> dict:
    """What one result log says."""
    events = read_events(log)
    (stop,) = (event for event in events if event.key == "run_stop")
    evaluations = [event for event in events if event.key == "eval_accuracy"]
    last = evaluations[-1]
    whole = stop.time_ms - _first(events, "run_start").time_ms
    train, evaluation = (_spent(events, key) for key in ("block", "eval"))
    return {
        "seed": _first(events, "seed").value,
        "status": stop.metadata["status"],
        "target": _first(events, "quality_target").value,
        "eval_accuracy": [_rounded(event.value) for event in evaluations],
        # BERT's log, as its reference's, calls samples epochs; those of language models have no epochs.
        "unit": "samples" if "samples_count" in last.metadata else "epoch",
        "epochs": round(last.metadata.get("epoch_num", last.metadata.get("samples_count", 0)), 2),
        "compile_seconds": round(_first(events, "compile_time").value, 2),
        "run_seconds": round(whole / 1e3, 3),
        "cores": len(os.sched_getaffinity(0)),
        "train_seconds": round(train / 1e3, 2),
        "eval_seconds": round(evaluation / 1e3, 2),
        "outside_train_and_eval_percent": round(100 * (1 - (train + evaluation) / whole), 2),
    }


def _rounded(quality: Quality) -> Quality:
    if isinstance(quality, dict):
        return {name: round(figure, 4) for name, figure in quality.items()}
    return round(quality, 4)


def shown(quality: Quality) -> str:
    """One figure, or several by name."""
    if isinstance(quality, dict):
        return ", ".join(f"{name} {figure:.4f}" for name, figure in quality.items())
    return f"{quality:.4f}"


def _target(target: Quality, metric: str | dict[str, str]) -> str:
    if isinstance(target, dict) and isinstance(metric, dict):
        return ", ".join(f"{figure} {metric[name]}" for name, figure in target.items())
    return f"{target} {metric}"


def _first(events: list[Event], key: str) -> Event:
    return next(event for event in events if event.key == key)


def _spent(events: list[Event], key: str) -> int:
    """Milliseconds inside intervals; of evaluations until training goes on beside them."""
    total, began = 0, None
    for event in events:
        if event.key == f"{key}_start":
            began = event.time_ms
        elif event.key in (f"{key}_stop", "block_start") and began is not None:
            total, began = total + event.time_ms - began, None
    return total


def scenario(folder: Path) -> dict:
    """What one scenario's performance and accuracy runs found; latencies in ms."""
    performance = json.loads((folder / "performance" / "run_1" / "result.json").read_text())
    accuracy = json.loads((folder / "accuracy" / "result.json").read_text())
    metrics = performance["metrics"]
    figures = {
        "SingleStream": ("early_stopping_latency_ss", "result_50.00_percentile_latency_ns"),
        "MultiStream": ("early_stopping_latency_ms", "result_50.00_percentile_per_query_latency_ns"),
        "Server": ("result_completed_samples_per_sec", "result_99.00_percentile_latency_ns"),
        "Offline": ("result_samples_per_second",),
    }
    names = TOKENS if TOKENS[0] in metrics or TOKENS[-1] in metrics else figures[folder.name]
    return {
        "result": metrics["result_validity"],
        "quality": accuracy["quality"],
        "quality_target": accuracy["quality_target"],
        "trained_quality": accuracy["trained_quality"],
        "min_duration_ms": performance["settings"]["min_duration_ms"],
        "server_target_latency_ns": performance["settings"]["server_target_latency_ns"],
        "metrics": {name: metrics[name] for name in names if name in metrics},
    }


def served_table(served: dict) -> str:
    """The four scenarios, a row each."""

    def figure(name: str, found: dict) -> str:
        figures = list(found["metrics"].values())
        if tokens := [found["metrics"][key] for key in TOKENS if key in found["metrics"]]:
            times = [f"{ns / 1e6:.3g} ms" for ns in tokens[1:]]
            told = f"; p99 of the first {times[0]}, of each other {times[1]}" if times else ""
            return f"{tokens[0]:,.1f} tokens/s{told}"
        match name:
            case "SingleStream":
                return f"p90 {figures[0] / 1e6:.3g} ms, median {figures[1] / 1e6:.3g} ms"
            case "MultiStream":
                return f"p99 {figures[0] / 1e6:.3g} ms a query of 8, median {figures[1] / 1e6:.3g} ms"
            case "Server":
                bound = found["server_target_latency_ns"] / 1e6
                return f"{figures[0]:,.1f} samples/s, p99 {figures[1] / 1e6:.3g} ms of {bound:g} ms"
        return f"{figures[0]:,.1f} samples/s"

    rows = "\n".join(
        f"| {name} | {found['result']} | {figure(name, found)} | {shown(found['quality'])} |"
        for name, found in served["scenarios"].items()
    )
    return f"| scenario | result | found | quality of the logged answers |\n|---|---|---|---|\n{rows}\n"


def served_text(title: str, served: dict) -> str:
    """The four scenarios, and how they were measured."""
    any_ = next(iter(served["scenarios"].values()))
    by_token = any(key in any_["metrics"] for key in TOKENS)
    what = "Whole texts, told without cache or slots, have" if by_token else "The newest of these models had"
    when = "" if by_token else " in training"
    stopping = "" if by_token else "SingleStream's p90 and MultiStream's p99 are early stopping's; "
    rate = "" if " --qps=" in served["command"] else "Server found its rate itself. "
    head = (
        f"{what} {shown(any_['trained_quality'])}{when}; asked is {shown(any_['quality_target'])}. "
        f"{stopping}{rate}{served['machine'] + '; load' if 'machine' in served else 'Load'} average "
        f"{served['load_average'][0]} before and {served['load_average'][1]} after."
    )
    return f"""
## {title}

{textwrap.fill(head, 118)}

```
{served["command"]}
```

{served_table(served)}"""


def text(record: dict) -> str:
    """The page for people."""
    rows = "\n".join(
        f"| {r['seed']} | {shown(r['eval_accuracy'][-1])} | {r['epochs']:,g} | {r['run_seconds']:.1f} s | {r.get('cores', 2)} | "
        f"{r['compile_seconds']:.1f} s | {r['eval_seconds']:.1f} s | {r['outside_train_and_eval_percent']} % | {r['status']} |"
        for r in record["runs"]
    )
    trivial = f" {record['trivial']}." if record["trivial"] else ""
    served = {"Served": record["served"], "Served as published, untrained": record.get("imported")}
    sections = "".join(served_text(title, found) for title, found in served.items() if found)
    versions, load = record["versions"], record["load_average"]
    head = (
        f"{LABEL}. {record['machine']}, of whose time this command had {record['cpu_share_percent']} %; load average "
        f"{load[0]} before and {load[1]} after. Python {versions['python']}, jax {versions['jax']}. "
        f"Target {_target(record['runs'][0]['target'], record['metric'])}.{trivial}"
    )
    return f"""# {record["workload"]} mini: convergence

{textwrap.fill(head, 118)}

```
{chr(10).join([record["command"], *record.get("more", ())])}
```

| seed | reached | after {record["runs"][0].get("unit", "epoch")} | time to train | cores | compilation | evaluation | outside train and eval | |
|---|---|---|---|---|---|---|---|---|
{rows}

Training took {record["command_seconds"]:.0f} s in all, at most {record["peak_resident_gb"]} GB of resident memory.
{sections}"""


def serve(workload: str, seconds: float, extra: list[str], asked: tuple[str, ...] = ()) -> dict:
    """Measures under the four scenarios what was trained into the folder of `extra`'s last, `--results_dir=`.

    `asked`: further arguments, which the record's command shows.
    """
    arguments = [f"--workload={workload}", "--platform=cpu", "--scenario=all", f"--time={seconds:g}", *asked]
    before = os.getloadavg()[0]
    status = subprocess.run([sys.executable, "-m", "mlperf_jax.main", *arguments, *extra]).returncode
    if status not in (0, 1):
        raise SystemExit(status)
    (folder,) = Path(extra[-1].partition("=")[2]).glob("mini/inference/*/*")
    return {
        "command": " ".join(["python -m mlperf_jax.main", *arguments]),
        "machine": records.machine_in_words(),
        "load_average": [round(before, 1), round(os.getloadavg()[0], 1)],
        "scenarios": {name: scenario(folder / name) for name in SCENARIOS if (folder / name).is_dir()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data_dir")
    parser.add_argument("--trivial", default="", help="what needs no training, and how good it is")
    parser.add_argument("--time", type=float, default=10, help="seconds of each scenario")
    parser.add_argument(
        "--more", action="store_true", help="add these seeds to the record, and serve nothing"
    )
    parser.add_argument("--unserved", action="store_true", help="serve nothing, and write a record")
    parser.add_argument("--after", help="the workload with whose model this one begins")
    parser.add_argument("--trained", help="results folder; serve what was trained there, and train nothing")
    parser.add_argument("--imported", help="folder of imported weights; serve these, and train nothing")
    parser.add_argument("--qps", type=float, help="queries a second of Server; otherwise it finds its rate")
    asked = parser.parse_args()
    path = FOLDER / f"{asked.workload}_mini.json"
    folder = [f"--data_dir={asked.data_dir}"] if asked.data_dir else []
    rate = (f"--qps={asked.qps:g}",) if asked.qps else ()
    if asked.trained:
        served = serve(asked.workload, asked.time, [*folder, f"--results_dir={asked.trained}"], rate)
        _write(path, json.loads(path.read_text()) | {"served": served})
        return
    if asked.imported:
        weights = (f"--weights={asked.imported}", *rate)
        with tempfile.TemporaryDirectory() as results:
            served = serve(asked.workload, asked.time, [*folder, f"--results_dir={results}"], weights)
        _write(path, json.loads(path.read_text()) | {"imported": served})
        return
    arguments = [
        f"--workload={asked.workload}",
        "--platform=cpu",
        f"--runs={asked.runs}",
        f"--seed={asked.seed}",
    ]
    before, began = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory() as results:
        extra = [*folder, f"--results_dir={results}"]
        if asked.after:
            train(f"--workload={asked.after}", "--platform=cpu", f"--seed={asked.seed}", *extra)
        before_it = _logs(results)
        train(*arguments, *extra)
        logs = [log for log in _logs(results) if log not in before_it]
        runs = [run(log) for log in logs]
        metric = _first(read_events(logs[0]), "quality_target").metadata["metric"]
        seconds, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        after = os.getloadavg()[0]
        served = {} if asked.more or asked.unserved else serve(asked.workload, asked.time, extra, rate)
    record = {
        "schema_version": 1,
        "workload": asked.workload,
        "command": " ".join(["./run_and_time.sh", *arguments]),
        "label": LABEL,
        "metric": metric,
        "trivial": asked.trivial,
        "machine": records.machine_in_words(),
        "cpu_share_percent": round(
            100 * (used.ru_utime + used.ru_stime) / seconds / len(os.sched_getaffinity(0))
        ),
        "load_average": [round(before, 1), round(after, 1)],
        "versions": records.versions(*PACKAGES) | {"python": platform.python_version()},
        "peak_resident_gb": round(used.ru_maxrss / 2**20, 2),
        "command_seconds": round(seconds, 1),
        "runs": runs,
        "served": served,
    }
    if asked.more:
        record = with_more(json.loads(path.read_text()), record)
    _write(path, record)


def _write(path: Path, record: dict) -> None:
    records.write(path, record)
    path.with_suffix(".md").write_text(text(record))
    print(text(record))


def train(*arguments: str) -> None:
    """Trains, whether the target is reached or not."""
    status = subprocess.run([sys.executable, "-m", "mlperf_jax.main", *arguments]).returncode
    if status not in (0, 1):
        raise SystemExit(status)


def _logs(results: str) -> list[Path]:
    return sorted(Path(results).glob("mini/results/*/*/result_*.txt"))


def with_more(stands: dict, added: dict) -> dict:
    """The record that stands with further seeds; one trained again takes the place of its older run."""
    again = {run["seed"] for run in added["runs"]}
    kept = [run for run in stands["runs"] if run["seed"] not in again]
    return stands | {
        "more": [*stands.get("more", ()), added["command"]],
        "peak_resident_gb": max(stands["peak_resident_gb"], added["peak_resident_gb"]),
        "command_seconds": round(stands["command_seconds"] + added["command_seconds"], 1),
        "runs": sorted([*kept, *added["runs"]], key=lambda run: run["seed"]),
    }


if __name__ == "__main__":
    main()
