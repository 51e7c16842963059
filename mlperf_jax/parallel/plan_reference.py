"""How many epochs the reference of a benchmark needed at a batch size.

The points are those of the installed mlperf-logging, rcp_checker/training_<round>/rcps_<benchmark>.json.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Convergence:
    """What the reference needed.

    Attributes:
        epochs: olympic mean, in epochs or, where the benchmark counts so, samples.
        how: where the number comes from, in words.
    """

    epochs: float
    how: str


def convergence(benchmark: str, batch_size: int) -> Convergence | None:
    """The reference convergence point of a batch size, or between its two neighbours; None without any.

    Outside the range of batch sizes the nearest point stands, and `how` says so.
    """
    found = _latest(benchmark)
    if found is None:
        return None
    round_name, points = found
    source = f"{benchmark} reference convergence points of {round_name}"
    if batch_size in points:
        return Convergence(points[batch_size], f"{source}, batch {batch_size}")
    low = max((b for b in points if b < batch_size), default=None)
    high = min((b for b in points if b > batch_size), default=None)
    if low is None or high is None:
        nearest = low or high
        return Convergence(
            points[nearest], f"{source}: none at {batch_size}, taken from the nearest batch, {nearest}"
        )
    share = (batch_size - low) / (high - low)
    mean = points[low] + share * (points[high] - points[low])
    return Convergence(mean, f"{source}, between batch {low} and {high}")


def _latest(benchmark: str) -> tuple[str, dict[int, float]] | None:
    """The latest round that has the benchmark, and its olympic means by batch size."""
    import mlperf_logging

    folder = Path(mlperf_logging.__file__).parent / "rcp_checker"
    for path in sorted(folder.glob(f"training_*/rcps_{benchmark}.json"), reverse=True):
        records = json.loads(path.read_bytes()).values()
        return path.parent.name, {record["BS"]: _olympic_mean(record) for record in records}
    return None


def _olympic_mean(record: dict) -> float:
    values = sorted(next(v for name, v in record.items() if name.lower().endswith("to converge")))
    return statistics.fmean(values[1:-1] if len(values) > 2 else values)
