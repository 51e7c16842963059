"""How fast loadgen_py is beside the official LoadGen: a system under test that does nothing, from Python.

    python benchmarks/loadgen_speed.py --out=benchmarks/loadgen_speed.json
    python benchmarks/loadgen_speed.py --only=server_10k,offline_1m --repeats=3

Every figure is the median of interleaved repeats, each in a process of its own: only ratios
measured in one run on one machine mean anything. Variants: `official` and `official_fast` are
`mlperf_loadgen` through ConstructSUT and ConstructFastSUT, `drop_in` and `drop_in_fast` the same
script with `loadgen_py`, `native` loadgen_py's own idiom. Trace off everywhere.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speed.side import resident

SCHEMA_VERSION = 1
NOTES = """
- Both packages stamp an answer when the completion call begins. A native Offline query is answered by one
  such call, so its samples/s say only that LoadGen adds nothing.
- On a shared machine the p99 of Server is mostly the machine's own stalls: see all repeats in the JSON.
- `server_peak`: the largest VALID rate, p99 at most 10 ms, 3 s, found to 5 %.
"""
VARIANTS = ("official", "official_fast", "drop_in", "drop_in_fast", "native")
BOUND_MS = 10


def _settings(lg: Any, scenario: str, **fields: Any) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, scenario)
    settings.server_target_latency_ns = BOUND_MS * 1_000_000
    for name, value in fields.items():
        setattr(settings, name, value)
    return settings


class _Library:
    name = "indices"
    total_count = performance_count = 1024

    def load(self, indices: Any) -> None: ...

    def unload(self, indices: Any) -> None: ...


class _Echo:
    """Answers at once, or from a thread of its own."""

    name = "echo"

    def __init__(self, threaded: bool) -> None:
        self._threaded = threaded

    def start(self, responses: Any) -> None:
        self.issue: Callable[..., None] = lambda ids, indices: responses.complete(ids)
        if self._threaded:
            self.issue = _in_a_thread(responses.complete)

    def flush(self) -> None: ...


def _in_a_thread(work: Callable[[Any], None]) -> Callable[..., None]:
    waiting: queue.SimpleQueue = queue.SimpleQueue()

    def serve() -> None:
        while True:
            work(waiting.get())

    threading.Thread(target=serve, daemon=True).start()
    return lambda samples, *_: waiting.put(samples)


def _run_once(
    variant: str, scenario: str, threaded: bool, **fields: Any
) -> tuple[dict[str, Any], dict[str, float]]:
    """(the detail log's values by key, when each was logged in ms by key, messages by text)."""
    official = variant.startswith("official")
    if official:
        import mlperf_loadgen as lg
    else:
        import loadgen_py as lg
    settings = _settings(lg, scenario, **fields)
    logs = lg.LogSettings()
    logs.enable_trace = False
    with tempfile.TemporaryDirectory() as folder:
        logs.log_output.outdir = folder
        if variant == "native":
            lg.run(_Echo(threaded), _Library(), settings, logs)
        else:
            fast = variant.endswith("fast")
            complete, response = lg.QuerySamplesComplete, lg.QuerySampleResponse

            def answer(samples: list) -> None:
                complete([response(sample.id, 0, 0) for sample in samples])

            def answer_ids(ids: list[int], *_: Any) -> None:
                complete([response(i, 0, 0) for i in ids])

            work = answer_ids if fast else answer
            construct = lg.ConstructFastSUT if fast else lg.ConstructSUT
            sut = construct(_in_a_thread(work) if threaded else work, lambda: None)
            library = lg.ConstructQSL(1024, 1024, lambda _: None, lambda _: None)
            lg.StartTestWithLogSettings(sut, library, settings, logs)
        text = (Path(folder) / "mlperf_log_detail.txt").read_text()
    values, times_ms = {}, {}
    for line in text.splitlines():
        try:
            record = json.loads(line.removeprefix(":::MLLOG "), strict=False)
        except ValueError:  # the official package writes nan
            continue
        key = record["key"]
        values[key] = record["value"]
        times_ms[record["value"].strip() if key == "generic_message" else key] = record["time_ms"]
    return values, times_ms


def _single_stream(variant: str) -> dict[str, float]:
    values, _ = _run_once(variant, "SingleStream", False, min_duration_ms=0, min_query_count=200_000)
    return {"queries_per_s": values["result_qps_with_loadgen_overhead"]}


def _multi_stream(variant: str) -> dict[str, float]:
    """There is no official figure: the queries over the time that the detail log gives for issuing them."""
    count = 50_000
    _, times_ms = _run_once(variant, "MultiStream", False, min_duration_ms=0, min_query_count=count)
    issuing_ms = times_ms["Ending naturally: Minimum query count and test duration met."]
    return {"queries_per_s": 1000 * count / (issuing_ms - times_ms["generated_query_duration"])}


def _offline(variant: str, samples: int) -> dict[str, float]:
    values, _ = _run_once(variant, "Offline", False, min_duration_ms=0, min_query_count=samples)
    # Not `ru_maxrss`, which begins with what the process had in memory that started this one.
    return {"samples_per_s": values["result_samples_per_second"], "resident_mb": resident("VmHWM") / 2**20}


def _server(variant: str, qps: float, threaded: bool) -> dict[str, float]:
    values, _ = _run_once(variant, "Server", threaded, server_target_qps=qps, min_duration_ms=2000)
    return {
        "p50_us": values["result_50.00_percentile_latency_ns"] / 1000,
        "p99_us": values["result_99.00_percentile_latency_ns"] / 1000,
    }


def _server_peak(variant: str) -> dict[str, float]:
    """The largest VALID rate, to 5 %."""

    def valid(qps: float) -> bool:
        values, _ = _run_once(variant, "Server", False, server_target_qps=qps, min_duration_ms=3000)
        return values["result_validity"] == "VALID"

    low, high = 100_000.0, 150_000.0
    while valid(high):
        low, high = high, 1.5 * high
    while high / low > 1.05:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if valid(middle) else (low, middle)
    return {"valid_qps": low}


MEASUREMENTS: dict[str, tuple[Callable[[str], dict[str, float]], tuple[str, ...]]] = {
    "single_stream": (_single_stream, VARIANTS),
    "multi_stream_8": (_multi_stream, VARIANTS),
    "offline_24576": (lambda v: _offline(v, 24_576), VARIANTS),
    "offline_1m": (lambda v: _offline(v, 1_000_000), VARIANTS),
    "server_1k": (lambda v: _server(v, 1_000, False), VARIANTS),
    "server_10k": (lambda v: _server(v, 10_000, False), VARIANTS),
    "server_1k_threaded": (lambda v: _server(v, 1_000, True), VARIANTS),
    "server_10k_threaded": (lambda v: _server(v, 10_000, True), VARIANTS),
    "server_peak": (_server_peak, ("official", "official_fast", "drop_in", "native")),
}


def once(name: str, variant: str) -> dict[str, float]:
    """The figures of a measurement, made in a process of its own."""
    command = [sys.executable, __file__, f"--one={name}:{variant}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure(names: list[str], repeats: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Medians and all repeats by measurement, variant and figure."""
    raw: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in names}
    for name in names:
        for repeat in range(repeats):
            for variant in MEASUREMENTS[name][1]:
                raw[name].setdefault(variant, []).append(once(name, variant))
                print(f"{name} {repeat} {variant} {raw[name][variant][-1]}", flush=True)
    return {
        name: {
            variant: {
                figure: {
                    "median": statistics.median(r[figure] for r in runs),
                    "all": [r[figure] for r in runs],
                }
                for figure in runs[0]
            }
            for variant, runs in variants.items()
        }
        for name, variants in raw.items()
    }


def table(record: dict[str, Any]) -> str:
    """The medians as a Markdown table, with the ratios to the official package's better variant."""
    lines = [
        "# Speed of loadgen_py beside the official LoadGen",
        "",
        "A system under test that does nothing, from Python, trace off. Medians of "
        f"{record['repeats']} interleaved repeats, each in its own process; Python {record['python']}, "
        f"{record['cpus']} cores, mlcommons-loadgen {record['official_version']}. Ratios are to the better "
        "figure of the official package; above 1 loadgen_py is better.",
        "",
        "    python benchmarks/loadgen_speed.py --out=benchmarks/loadgen_speed.json",
        "",
        "| median | official | official fast | drop-in | drop-in fast | native | drop-in / off. | native / off. |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, variants in record["results"].items():
        for figure in variants["official"]:
            less = figure.endswith(("_us", "_mb"))
            medians = {variant: figures[figure]["median"] for variant, figures in variants.items()}
            best = (min if less else max)(v for k, v in medians.items() if k.startswith("official"))

            def ratio(*names: str, less: bool = less, best: float = best, medians: dict = medians) -> str:
                ours = [medians[name] for name in names if name in medians]
                return f"{best / min(ours) if less else max(ours) / best:.2f}"

            cells = [f"{medians[v]:,.4g}" if v in medians else "" for v in VARIANTS]
            ratios = [ratio("drop_in", "drop_in_fast"), ratio("native")]
            lines.append(f"| {name} {figure} | {' | '.join(cells + ratios)} |")
    return "\n".join(lines) + "\n" + NOTES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="measurements, by comma")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, variant = arguments.one.split(":")
        print(json.dumps(MEASUREMENTS[name][0](variant)))
        return
    results = measure(arguments.only.split(","), arguments.repeats)
    if arguments.out:
        record = {
            "schema_version": SCHEMA_VERSION,
            "official_version": importlib.metadata.version("mlcommons-loadgen"),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "repeats": arguments.repeats,
            "results": results,
        }
        if arguments.out.exists():  # keep what was not measured this time
            before = json.loads(arguments.out.read_text())["results"]
            record["results"] = {
                n: (before | results)[n] for n in MEASUREMENTS if n in before or n in results
            }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(table(record))


if __name__ == "__main__":
    main()
