"""Small systems under test and a sample library for the tests."""

from __future__ import annotations

import json
from pathlib import Path

import loadgen_py as lg


class Library:
    """Indices without data."""

    name = "indices"

    def __init__(self, total: int = 64, performance: int = 16) -> None:
        self.total_count, self.performance_count = total, performance
        self.loaded: list[list[int]] = []

    def load(self, indices) -> None:
        self.loaded.append(indices.tolist())

    def unload(self, indices) -> None:
        assert indices.tolist() == self.loaded[-1]


class System:
    """Calls `answer(responses, ids, indices)` for each query."""

    name = "system"

    def __init__(self, answer) -> None:
        self._answer = answer
        self.queries = 0
        self.flushed = 0

    def start(self, responses) -> None:
        self.responses = responses

    def issue(self, ids, indices) -> None:
        self.queries += 1
        self._answer(self.responses, ids, indices)

    def flush(self) -> None:
        self.flushed += 1


def echo(responses, ids, indices) -> None:
    """Answers at once with the index."""
    responses.complete(ids, [int(index).to_bytes(4, "little") for index in indices])


def settings(scenario: str, mode: str = "PerformanceOnly", **fields) -> lg.TestSettings:
    """Settings of a run of about 0.1 s."""
    result = lg.TestSettings(
        scenario=lg.TestScenario[scenario],
        mode=lg.TestMode[mode],
        min_duration_ms=50,
        min_query_count=100,
        single_stream_expected_latency_ns=1_000,
        multi_stream_expected_latency_ns=2_000,
        server_target_qps=2_000,
        offline_expected_qps=20_000,
    )
    for name, value in fields.items():
        setattr(result, name, value)
    return result


def log_to(folder: Path, **fields) -> lg.LogSettings:
    """Logs in a folder."""
    return lg.LogSettings(log_output=lg.LogOutputSettings(outdir=str(folder)), **fields)


def detail(folder: Path) -> list[dict]:
    """The lines of a detail log: strict JSON, each."""
    lines = (folder / "mlperf_log_detail.txt").read_text().splitlines()

    def refuse(text: str):
        raise AssertionError(f"{text} is not JSON")

    return [json.loads(line.removeprefix(":::MLLOG "), parse_constant=refuse) for line in lines]


def values(folder: Path, key: str) -> list:
    """All values of a key of a detail log."""
    return [line["value"] for line in detail(folder) if line["key"] == key]


def errors(folder: Path) -> list[str]:
    """The error lines of a detail log."""
    return [line["value"] for line in detail(folder) if line["metadata"]["is_error"]]
