"""Runs one LoadGen test, by the official package or by ours, and records all that it decides.

As a program it takes a JSON list of cases and the folder for the logs, and prints one JSON record
a case: the official package may crash, and keeps state from one test to the next.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from array import array
from pathlib import Path
from typing import Any


def record(lg: Any, case: dict, folder: Path) -> dict:
    """Runs a case through module `lg` and returns what was loaded, asked, logged and judged.

    A case has `settings` (fields of `TestSettings`), `total` and `performance` sample counts,
    and optionally `trace`; `mean_us` and `seed`: the exponential time that each query takes; and
    `slow_phases`: which phases, counted by their flushes, take 130 ms a query.
    The answers are the 4 bytes of the sample's index.
    """
    pace = random.Random(case.get("seed", 0))
    settings = lg.TestSettings()
    for name, value in case["settings"].items():
        if name == "scenario":
            value = getattr(lg.TestScenario, value)
        elif name == "mode":
            value = getattr(lg.TestMode, value)
        setattr(settings, name, value)
    logs = lg.LogSettings()
    logs.enable_trace = bool(case.get("trace"))
    logs.log_output.outdir = str(folder)
    tokens = case["settings"].get("use_token_latencies", False)
    offline = case["settings"]["scenario"] == "Offline"
    loaded, unloaded, issued, kept, flushed = [], [], [], [], []
    slow_phases = case.get("slow_phases")

    def issue(samples):
        issued.append([sample.index for sample in samples])
        first_token_at = time.perf_counter()
        if slow_phases and slow_phases[len(flushed)]:
            time.sleep(0.13)
        if case.get("mean_us"):
            first_token_at += pace.expovariate(1e6 / case["mean_us"])
        responses = []
        for sample in samples:
            data = _buffer(sample.index)
            kept.append(data)
            arguments = (sample.id, data.buffer_info()[0], 4)
            if tokens:
                arguments += (2 + sample.index % 5,)
            responses.append(lg.QuerySampleResponse(*arguments))
        _spin_until(first_token_at)
        if tokens and not offline:
            lg.FirstTokenComplete(responses)
            _spin_until(first_token_at + 0.3e-6 * case.get("mean_us", 0))
        lg.QuerySamplesComplete(responses)

    sut = lg.ConstructSUT(issue, lambda: flushed.append(True))
    library = lg.ConstructQSL(case["total"], case["performance"], loaded.append, unloaded.append)
    try:
        lg.StartTestWithLogSettings(sut, library, settings, logs, str(folder / "audit.config"))
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(sut)
    return {
        "loaded": [list(indices) for indices in loaded],
        "unloaded": [list(indices) for indices in unloaded],
        "issued": issued,
        "detail": read_detail(folder),
        "errors": read_errors(folder),
        "summary": (folder / "mlperf_log_summary.txt").read_text(),
        "accuracy": json.loads((folder / "mlperf_log_accuracy.json").read_text()),
        "trace": read_trace(folder) if case.get("trace") else [],
        "first_tokens": read_server_first_tokens(folder) if case.get("trace") else {},
    }


def _spin_until(moment: float) -> None:
    while time.perf_counter() < moment:
        pass


def _buffer(index: int) -> array:
    return array("B", index.to_bytes(4, "little"))


def _lines(folder: Path) -> list[dict]:
    lines = (folder / "mlperf_log_detail.txt").read_text().splitlines()
    # The official package writes nan and inf bare, and version texts with raw control characters.
    lines = [re.sub(r'"value": -?(nan|inf)', '"value": null', line) for line in lines]
    return [
        json.loads(line.removeprefix(":::MLLOG "), strict=False)
        for line in lines
        if line.startswith(":::MLLOG")
    ]


def read_detail(folder: Path) -> dict[str, list]:
    """All values of each key of the detail log."""
    values: dict[str, list] = {}
    for line in _lines(folder):
        values.setdefault(line["key"], []).append(line["value"])
    return values


def read_errors(folder: Path) -> list[str]:
    """The values of the error lines."""
    return [line["value"] for line in _lines(folder) if line["metadata"]["is_error"]]


def read_trace(folder: Path) -> list[dict]:
    """The samples of a trace: scheduled (ns from an unknown origin), latencies, in order of sequence.

    The events are found by pattern: the official traces are not always whole JSON.
    """
    text = (folder / "mlperf_log_trace.json").read_text()
    pattern = re.compile(
        r'"name":"(Sample|Token)",[^{}]*?"ph":"b",[^{}]*?"ts":([-0-9.]+),"args":\{"sample_seq":(\d+),'
        r'"query_seq":(\d+),"sample_idx":(\d+),"issue_start_ns":(-?\d+),"complete_ns":(-?\d+)'
    )
    samples = []
    for match in pattern.finditer(text):
        whole, part = match[2].split(".")
        scheduled = int(whole) * 1000 + int(part) * (-1 if whole.startswith("-") else 1)
        keys = ("seq", "query", "index", "issue_delay", "latency")
        sample = dict(zip(keys, map(int, match.groups()[2:]), strict=True))
        samples.append(sample | {"kind": match[1], "ts": match[2], "scheduled": scheduled})
    return sorted(samples, key=lambda sample: sample["seq"])


def read_server_first_tokens(folder: Path) -> dict[str, int]:
    """First-token latencies of a Server trace, by when the query was scheduled as the trace writes it."""
    text = (folder / "mlperf_log_trace.json").read_text()
    pattern = (
        r'"name":"Token_Latency",.*?"ts":([-0-9.]+),"args":\{ "issue_delay":(-?\d+),"issue_to_done":(-?\d+)'
    )
    return {match[1]: int(match[2]) + int(match[3]) for match in re.finditer(pattern, text)}


def main() -> None:
    import mlperf_loadgen

    cases = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    for number, case in enumerate(cases):
        target = folder / f"official_{number}"
        target.mkdir()
        print(json.dumps(record(mlperf_loadgen, case, target)), flush=True)


if __name__ == "__main__":
    main()
