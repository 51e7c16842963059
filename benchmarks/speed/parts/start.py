"""What there is beside computing: Python for a step and for a query, starting, and what a run does between its steps."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.speed import measure
from benchmarks.speed.parts import Run
from mlperf_jax.compilation_cache import OFF
from mlperf_jax.results.events import read_events

CASES = ["Python of a step", "Python of a query", "starts", "outside of steps"]
_STARTS = 2  # of each kind
_FAILED = 2  # from this exit status on; 1 is a target that random data does not reach
_SMALL = [
    "--synthetic_data",
    "--config.data.num_train=2560",
    "--config.data.num_eval=1000",
    "--config.max_epochs=1",
]
_LONG = [
    "--synthetic_data",
    "--config.data.num_train=30000",
    "--config.data.num_eval=5000",
    "--config.max_epochs=3",
]


def measure_case(case: str, run: Run) -> dict[str, Any]:
    """Figures by what they are, each as `measure.told`, and their unit: "s", "ms", "us" or "share".

    Raises:
        Failed: a command ended otherwise than it should.
    """
    with measure.folders([case]) as folders:
        return {
            "Python of a step": _step,
            "Python of a query": _query,
            "starts": _starts,
            "outside of steps": _outside,
        }[case](run, Path(folders[case]))


def _step(run: Run, folder: Path) -> dict[str, Any]:
    """By `benchmarks.python_cost`, whose devices have next to nothing to compute."""
    run.say("ResNet-50's tree of parameters")
    out = folder / "cost.json"
    _run(
        [sys.executable, "-m", "benchmarks.python_cost", f"--platform={run.spec['platform']}", f"--out={out}"]
    )
    record = json.loads(out.read_text())
    costs = record["milliseconds_per_step"]
    arrays = sum(record["leaves"].values())
    return {
        "unit": "ms",
        "figures": {
            f"a step with {arrays} arrays, {name}": {
                "median": cost["median"],
                "low": cost["p10"],
                "high": cost["p90"],
            }
            for name, cost in (("wall", costs["wall"]), ("CPU of its thread", costs["thread"]))
        },
    }


def _query(run: Run, folder: Path) -> dict[str, Any]:
    """SingleStream's p50 of resnet50 beside that of bare calls, and what lies between them."""
    spec = run.spec | {"side": "serving", "workload": "resnet50", "devices": 1, "folder": str(folder)}
    with measure.workers({"serving": spec | {"server_seconds": 1.0}}) as workers:
        run.say("making and compiling it")
        workers["serving"].ask("prepare")
        workers["serving"].ask("ready", program="SingleStream")
        found = []
        for index in range(run.rounds):
            run.say(f"round {index + 1} of {run.rounds}")
            found.append(workers["serving"].ask("queries", seconds=run.seconds))
    us = {name: [1e6 * one[name] for one in found] for name in ("bare", "query")}
    between = [query - bare for query, bare in zip(us["query"], us["bare"], strict=True)]
    return {
        "unit": "us",
        "figures": {
            "a bare call of one sample": measure.told(us["bare"]),
            "a query through LoadGen and the system under test": measure.told(us["query"]),
            "between them": measure.told(between),
        },
    }


def _starts(run: Run, folder: Path) -> dict[str, Any]:
    """From the start of a process to its first step, and to its first query, with programs kept from before and without."""
    found: dict[str, list[float]] = {}
    kept = folder / "kept"
    _first_step(run, folder / "first", str(kept))  # fills it, and leaves a model to serve
    _first_query(run, folder / "first", str(kept))
    for index in range(_STARTS):
        for how, cache in (("compiling", OFF), ("programs kept", str(kept))):
            run.say(f"start {index + 1} of {_STARTS}, {how}")
            step = _first_step(run, folder / f"{how}{index}", cache)
            found.setdefault(f"first step, {how}", []).append(step)
            query = _first_query(run, folder / "first", cache)
            found.setdefault(f"first query, {how}", []).append(query)
    return {"unit": "s", "figures": {name: measure.told(seconds) for name, seconds in found.items()}}


def _command(run: Run, results: Path, *more: str) -> list[str]:
    platform = f"--platform={run.spec['platform']}"
    return [
        sys.executable,
        *("-m", "mlperf_jax.main", "--workload=resnet50", "--preset=mini", platform, "--synthetic_data"),
        f"--results_dir={results}",
        *more,
    ]


def _first_step(run: Run, results: Path, cache: str) -> float:
    """Seconds from the start of a training command to the line of its first step."""
    command = _command(run, results, f"--compilation_cache={cache}", *_SMALL)
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        first, said = None, []
        for line in process.stdout:
            said.append(line)
            if first is None and re.match(r"step [0-9]+/", line):
                first = time.perf_counter() - began
    if first is None or process.returncode >= _FAILED or process.returncode < 0:
        raise measure.Failed(
            f"a run ended with status {process.returncode} {''.join(said[-1:]).strip()[:160]}".strip()
        )
    return first


def _first_query(run: Run, results: Path, cache: str) -> float:
    """Seconds from the start of an inference command to LoadGen's `power_begin`, when its first query is issued."""
    more = ("--scenario=SingleStream", "--mode=performance", "--time=0.1", f"--compilation_cache={cache}")
    began = datetime.datetime.now(datetime.UTC)
    _run(_command(run, results, *more))
    (detail,) = results.glob("mini/inference/*/resnet50/SingleStream/performance/run_1/mlperf_log_detail.txt")
    said = re.search(r'"power_begin", "value": "([^"]+)"', detail.read_text())
    assert said
    begin = datetime.datetime.strptime(said[1], "%m-%d-%Y %H:%M:%S.%f").replace(tzinfo=datetime.UTC)
    return (begin - began).total_seconds()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode >= _FAILED or done.returncode < 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise measure.Failed(f"a command ended with status {done.returncode} {''.join(last)[:160]}".strip())


def _outside(run: Run, folder: Path) -> dict[str, Any]:
    """Of run_start to run_stop the shares that blocks of steps, waiting for input within them, and evaluations take."""
    run.say("a run of three epochs")
    _run(_command(run, folder, *_LONG))
    (path,) = folder.glob("mini/results/*/*/result_0.txt")
    shares = shares_of_time(read_events(path))
    return {"unit": "share", "figures": {name: measure.told([share]) for name, share in shares.items()}}


def shares_of_time(events: list[Any]) -> dict[str, float]:
    """Of the time from run_start to run_stop of a log."""
    times = {event.key: event.time_ms for event in events if event.key in ("run_start", "run_stop")}
    whole = (times["run_stop"] - times["run_start"]) / 1000
    blocks = [event.value for event in events if event.key == "tracked_stats"]
    waiting = sum(block["input_wait_seconds"] for block in blocks)
    steps = sum(block["seconds"] for block in blocks) - waiting
    evaluating, began = 0.0, 0
    for event in events:
        if event.key == "eval_start":
            began = event.time_ms
        elif event.key == "eval_stop":
            evaluating += (event.time_ms - began) / 1000
    return {
        "steps": steps / whole,
        "waiting for input": waiting / whole,
        "evaluation": evaluating / whole,
        "else (checkpoints, log)": 1 - (steps + waiting + evaluating) / whole,
    }
