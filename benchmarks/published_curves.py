"""The evaluations of published runs of language models, by batch size and base learning rate.

    python -m benchmarks.published_curves NAME=FOLDER [NAME=FOLDER ...]

writes mlperf_jax/rounds/published_curves.json, which logs, reports and `check` hold runs against. A folder is a checkout of
mlcommons/training_results_v5.1, say, or of mlcommons/training with the reference's own logs (rcp_logs), and NAME says where
it comes from, with its revision. Of each group of runs the file has the least, the median and the most loss at every
evaluation that the rules ask for, as far as all of its runs went: what comes after would be of the slow ones alone. The
reference's runs of gpt_oss_20b in batches of 32 and 64 evaluated 2,048 and 4,096 sequences, where the rules ask for 1,024.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.results.folders import write_bytes
from mlperf_jax.rounds import evaluation_schedule, published_curves
from mlperf_jax.rounds.objects import number
from mlperf_jax.rounds.training_logs import read_run
from mlperf_jax.rounds.training_rules import find_benchmark

BENCHMARKS = ("llama31_8b", "gpt_oss_20b", "llama2_70b_lora")
_COLUMNS = ["samples", "runs", "least", "median", "most"]
_DIGITS = 4


@dataclasses.dataclass(frozen=True)
class _Run:
    """losses: (samples trained on, loss) of each evaluation, in order. reached: samples at the first of them that reaches
    the target, None if none does: the reference's runs go on from there."""

    key: tuple[str, int, float]  # benchmark, batch size, base learning rate
    source: str
    losses: tuple[tuple[float, float], ...]
    reached: float | None


def main(arguments: Sequence[str]) -> int:
    groups: dict[tuple[str, int, float], list[_Run]] = collections.defaultdict(list)
    for argument in arguments:
        name, _, folder = argument.partition("=")
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in (".txt", ".log") and (run := _read(path, name)):
                groups[run.key].append(run)
    curves = [_curve(key, runs) for key, runs in sorted(groups.items(), key=lambda item: _place(item[0]))]
    lines = ",\n".join(json.dumps(curve) for curve in curves)
    text = f'{{"columns_of_points": {json.dumps(_COLUMNS)}, "columns_of_reached": ["samples", "runs"], "curves": [\n{lines}\n]}}\n'
    write_bytes(published_curves.FILE, text.encode())
    for curve in curves:
        print(
            f"{curve['benchmark']} {curve['batch_size']} {curve['base_learning_rate']:g}: {curve['runs']} runs"
        )
    return 0


def _place(key: tuple[str, int, float]) -> tuple[int, int, float]:
    return BENCHMARKS.index(key[0]), *key[1:]


def _read(path: Path, source: str) -> _Run | None:
    try:
        log = read_run(path)
    except UserError:  # no log
        return None
    benchmark = find_benchmark(str(log.value("submission_benchmark")))
    rate = number(log.value("opt_base_learning_rate"))
    losses = tuple((one.epoch, one.quality) for one in log.evaluations if one.epoch is not None)
    if not benchmark or benchmark.key not in BENCHMARKS or not log.batch_size or not rate or not losses:
        return None
    target = benchmark.target("v6.1") or 0.0
    reached = next((samples for samples, loss in losses if loss <= target), None)
    return _Run((benchmark.key, log.batch_size, rate), source, losses, reached)


def _curve(key: tuple[str, int, float], runs: Sequence[_Run]) -> dict[str, Any]:
    benchmark, batch, rate = key
    return {
        "benchmark": benchmark,
        "batch_size": batch,
        "base_learning_rate": rate,
        "runs": len(runs),
        "sources": sorted({run.source for run in runs}),
        "points": list(_points(benchmark, batch, runs)),
        "reached": list(_reached(runs)),
    }


def _points(benchmark: str, batch: int, runs: Sequence[_Run]) -> Iterator[list[float]]:
    """At each evaluation that the rules ask for and at least half of the runs made, one batch aside; until the first ended."""
    (schedule,) = evaluation_schedule.find_schedules(benchmark, "v6.1", batch)
    assert isinstance(schedule, evaluation_schedule.Every)
    step = -(-int(schedule.interval) // batch) * batch
    end = min(run.losses[-1][0] for run in runs) + batch
    for samples in range(step, int(end) + 1, step):
        told = [loss for run in runs for at, loss in run.losses if abs(at - samples) <= batch]
        if 2 * len(told) >= len(runs):
            figures = (min(told), statistics.median(told), max(told))
            yield [samples, len(told), *(round(figure, _DIGITS) for figure in figures)]


def _reached(runs: Sequence[_Run]) -> Iterator[list[float]]:
    """By how many samples how many runs had reached the target."""
    ends = collections.Counter(run.reached for run in runs if run.reached is not None)
    total = 0
    for samples, count in sorted(ends.items()):
        total += count
        yield [int(samples), total]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
