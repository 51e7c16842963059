"""Where published runs were on their way: the losses of their evaluations by what they had trained on.

A language model is judged long before its target by whether it comes down as others did. published_curves.json has
every evaluation of MLPerf's published runs and of the reference's own, by batch size and base learning rate
(`python -m benchmarks.published_curves` made it, and it names its sources).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
_ENOUGH = 20  # runs whose spread says how far apart runs of the same numbers are


@dataclasses.dataclass(frozen=True)
class Point:
    """What `runs` runs had found after `samples`: the least loss, the median, the most."""

    samples: float
    runs: int
    least: float
    median: float
    most: float

    def away(self, loss: float) -> bool:
        """Whether a loss is twice as far from the median as any of these on its side, or not a number: the next run is often
        a little outside of what others found, and another precision moves all runs (NVFP4's of v5.1 by 0.03)."""
        return not 2 * self.least - self.median <= loss <= 2 * self.most - self.median


@dataclasses.dataclass(frozen=True)
class Curve:
    """Runs of one benchmark with the same numbers.

    Attributes:
        benchmark: its key.
        batch_size, base_lr: what they have in common.
        runs: how many they are.
        sources: whose they are.
        points: as far as all of them went, in order.
        reached: (samples, how many had reached the target by then), in order.
    """

    benchmark: str
    batch_size: int
    base_lr: float
    runs: int
    sources: tuple[str, ...]
    points: tuple[Point, ...]
    reached: tuple[tuple[float, int], ...]

    def at(self, samples: float) -> Point | None:
        """Where they were after so many samples, by straight lines in the logarithm of these; None before their first
        evaluation and where the first of them has ended. An evaluation may be one batch off."""
        known = [point.samples for point in self.points]
        if not known[0] - self.batch_size <= samples <= known[-1] + self.batch_size:
            return None
        samples = min(max(samples, known[0]), known[-1])
        after = bisect.bisect_left(known, samples)
        high, low = self.points[after], self.points[max(after - 1, 0)]
        if high.samples - samples <= self.batch_size or high is low:
            return high
        share = math.log(samples / low.samples) / math.log(high.samples / low.samples)
        between = (
            getattr(low, name) + share * (getattr(high, name) - getattr(low, name))
            for name in ("least", "median", "most")
        )
        return Point(samples, min(low.runs, high.runs), *between)

    def ended(self, samples: float) -> int:
        """How many had reached the target after so many samples."""
        return max((count for at, count in self.reached if at <= samples), default=0)


@dataclasses.dataclass(frozen=True)
class Beside:
    """A run's evaluation beside published ones.

    Attributes:
        curve: theirs.
        samples: what the run had trained on.
        point: where they were then; None where some of them had ended.
        exact: whether they are of its batch size and base learning rate.
    """

    curve: Curve
    samples: float
    point: Point | None
    exact: bool

    def away(self, loss: float) -> bool:
        """Whether a loss is away from theirs; never where they are too few, or had other numbers."""
        point = self.point
        if point is None or not self.exact or point.runs < _ENOUGH:
            return False
        return point.away(loss)

    @property
    def range(self) -> str:
        """Where they were, in few words."""
        if self.point is None:
            return f"{self._ended} of {self.curve.runs} had reached the target"
        if self.point.runs == 1:
            return f"{self.point.median:.3f}"
        return f"{self.point.least:.3f} to {self.point.most:.3f}"

    @property
    def words(self) -> str:
        """Who they are and where they were, as a sentence without its end."""
        curve, at = self.curve, f"after {self.samples:,.0f} sequences"
        count = "the one published run" if curve.runs == 1 else f"the {curve.runs} published runs"
        who = f"{count} of batch size {curve.batch_size} and base learning rate {curve.base_lr:g}"
        if not self.exact:
            who += " (none is of this run's numbers, these are the nearest)"
        if self.point is None:
            return f"{self._ended} of {who} had reached the target {at}"
        if self.point.runs == 1:
            return f"{who} was at {self.range} {at}"
        return f"{who} were at {self.range} {at}, median {self.point.median:.3f}"

    @property
    def _ended(self) -> int:
        return self.curve.ended(self.samples)


def find_curve(benchmark: str, batch_size: float | None, base_lr: float | None) -> tuple[Curve, bool] | None:
    """The published runs of the nearest batch size and, of several, of the nearest base learning rate.

    Returns:
        Them, and whether both are the same; None where there are none, or a number is not known.
    """
    curves = _load().get(benchmark)
    if not curves or not batch_size or not base_lr or batch_size < 0 or base_lr < 0:
        return None
    nearest = min(
        curves,
        key=lambda curve: (
            abs(math.log(batch_size / curve.batch_size)),
            abs(math.log(base_lr / curve.base_lr)),
        ),
    )
    exact = nearest.batch_size == batch_size and math.isclose(nearest.base_lr, base_lr, rel_tol=1e-6)
    return nearest, exact


def beside(
    benchmark: str, batch_size: float | None, base_lr: float | None, samples: float | None
) -> Beside | None:
    """Published runs beside an evaluation of a run with these numbers; None where nothing is known of then."""
    found = find_curve(benchmark, batch_size, base_lr)
    if found is None or samples is None:
        return None
    curve, exact = found
    point = curve.at(samples)
    if point is None and samples < curve.points[-1].samples:
        return None
    return Beside(curve, samples, point, exact)


Compared = tuple[Beside, float]
"""An evaluation beside published runs, and its loss."""


def compare(
    benchmark: str,
    batch_size: float | None,
    base_lr: float | None,
    losses: Iterable[tuple[float | None, float]],
) -> list[Compared]:
    """A run's evaluations, each (samples trained on, loss), beside published runs; those of which something is known."""
    told = ((beside(benchmark, batch_size, base_lr, samples), loss) for samples, loss in losses)
    return [(one, loss) for one, loss in told if one is not None]


def sentence(compared: Sequence[Compared]) -> str:
    """Where published runs were at the last evaluation that all of them came to, and how many of these are away."""
    last, loss = max(compared, key=lambda pair: (pair[0].point is not None, pair[0].samples))
    away = sum(one.away(found) for one, found in compared)
    count = f"{away} of {len(compared)} evaluations are away from theirs" if away else ""
    return "; ".join(filter(None, (f"loss {loss:.3f}, where {last.words}", count)))


@functools.cache
def _load() -> dict[str, tuple[Curve, ...]]:
    """All curves by benchmark."""
    found: dict[str, list[Curve]] = {}
    for raw in json.loads(FILE.read_bytes())["curves"]:
        curve = Curve(
            raw["benchmark"],
            raw["batch_size"],
            raw["base_learning_rate"],
            raw["runs"],
            tuple(raw["sources"]),
            tuple(Point(*numbers) for numbers in raw["points"]),
            _pairs(raw["reached"]),
        )
        found.setdefault(curve.benchmark, []).append(curve)
    return {name: tuple(curves) for name, curves in found.items()}


def _pairs(raw: Iterable[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    return tuple((samples, count) for samples, count in raw)
