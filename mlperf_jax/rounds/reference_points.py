"""Holds convergence against MLPerf's reference convergence points, by the rules' own test.

A submission may not need significantly fewer epochs than the reference does at its batch size: then it
would not be the same training. The points are those of the installed mlperf-logging (its
rcp_checker/training_<ruleset>/rcps_<benchmark>.json); the test is training_rules.adoc, "Reference
Convergence Points": prune, interpolate, one-sided t-test with equal variances at 0.05.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from mlperf_jax.goals import Goal
from mlperf_jax.goals import reached as goals_reached
from mlperf_jax.rounds import training_rules
from mlperf_jax.rounds.objects import number
from mlperf_jax.rounds.qualities import figures
from mlperf_jax.rounds.scoring import olympic_mean, reached
from mlperf_jax.rounds.training_logs import RunLog
from mlperf_jax.rounds.training_rules import Benchmark

ALPHA = 0.05
# Of the Llama 3.1 405B the fastest convergence that is let pass is one evaluation earlier (46,080 sequences).
_GRACE = {"llama31_405b": 46_080}
_UNET_MOST_EPOCHS = 10_000  # then a run has failed


@dataclasses.dataclass(frozen=True)
class Point:
    """The reference at one batch size. Epochs are samples with benchmarks that count them.

    Attributes:
        mean: olympic mean of `epochs`. std: of all of them.
        fastest: the least mean that a submission may have.
        epochs: of the reference's runs, sorted; empty where the point is interpolated.
    """

    batch_size: int
    mean: float
    std: float
    fastest: float
    epochs: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a submission converged against the reference.

    Attributes:
        passed: None where the rules have no say on it.
        text: in words.
        epochs: of the runs that converged, sorted.
        mean: olympic mean of the submission; None where there is none.
        point: what it was held against.
        normalization: factor that would bring a score up to the reference's mean, at least 1.
    """

    passed: bool | None
    text: str
    batch_size: int | None = None
    epochs: tuple[float, ...] = ()
    mean: float | None = None
    point: Point | None = None
    normalization: float = 1.0


class ReferencePoints:
    """The points of one benchmark in one ruleset.

    Attributes:
        points: all, by batch size. pruned: those that the test uses.
        round_name: the round that they are of.
    """

    def __init__(
        self,
        raw: Sequence[tuple[int, Sequence[float]]],
        benchmark: Benchmark,
        runs: int,
        round_name: str = "",
    ) -> None:
        self.round_name = round_name
        self._benchmark = benchmark
        self._runs = runs
        self.points = sorted((self._point(size, epochs) for size, epochs in raw), key=lambda p: p.batch_size)
        self.pruned = self._prune()

    def _point(self, batch_size: int, epochs: Sequence[float]) -> Point:
        dropped = self._benchmark.dropped
        mean = olympic_mean(epochs, dropped)
        std = statistics.pstdev(epochs)
        return Point(
            batch_size, mean, std, self._fastest(mean, std, len(epochs) - 2 * dropped), tuple(sorted(epochs))
        )

    def _fastest(self, mean: float, std: float, reference_runs: int) -> float:
        """Where the t-test turns, with `std` for both sides and the rules' number of runs less two."""
        from scipy.stats import t  # heavy, and only wanted here

        mine = self._runs - 2
        freedom = mine + reference_runs - 2
        if std == 0 or freedom <= 0:
            return mean
        step = t.ppf(1 - ALPHA, freedom) * std * math.sqrt(1 / mine + 1 / reference_runs)
        return max(mean - float(step), 0.0)

    def _between(self, batch_size: int, low: Point, high: Point) -> Point:
        share = (batch_size - low.batch_size) / (high.batch_size - low.batch_size)
        mean = low.mean + share * (high.mean - low.mean)
        std = low.std + share * (high.std - low.std)
        return Point(batch_size, mean, std, self._fastest(mean, std, 2 * self._runs))

    def _prune(self) -> list[Point]:
        """Leaves out what converges slower than its neighbours let expect.

        First all below the batch size of the fastest point; then in one pass each point above the line
        between its two neighbours. As the official checker does it, which is not quite the convex hull:
        a point that was passed is not looked at again.
        """
        fastest = min(self.points, key=lambda p: p.mean)
        kept = [p for p in self.points if p.batch_size >= fastest.batch_size]
        i = 1
        while i < len(kept) - 1:
            if kept[i].mean > self._between(kept[i].batch_size, kept[i - 1], kept[i + 1]).mean:
                del kept[i]
            else:
                i += 1
        return kept

    def find(self, batch_size: int) -> tuple[Point | None, str]:
        """The point to hold a batch size against, and how it was come by."""
        exact = next((p for p in self.pruned if p.batch_size == batch_size), None)
        if exact:
            return exact, "the reference point of this batch size"
        low = max(
            (p for p in self.pruned if p.batch_size < batch_size), key=lambda p: p.batch_size, default=None
        )
        high = min(
            (p for p in self.pruned if p.batch_size > batch_size), key=lambda p: p.batch_size, default=None
        )
        if low and high:
            return self._between(batch_size, low, high), f"between {low.batch_size} and {high.batch_size}"
        if high:
            return high, f"the smallest batch size there is, {high.batch_size}"
        return None, ""

    def judge(self, batch_size: int, epochs: Sequence[float]) -> Verdict:
        """Tests a submission.

        Args:
            batch_size: its global batch size.
            epochs: to converge, of each run; `math.inf` where one did not.
        """
        dropped = self._benchmark.dropped
        ordered = tuple(sorted(epochs))
        finite = tuple(e for e in ordered if e < math.inf)
        if len(ordered) - len(finite) > dropped or len(ordered) <= 2 * dropped:
            return Verdict(None, "too few runs converged for the test", batch_size, finite)
        mean = olympic_mean(ordered, dropped)
        point, how = self.find(batch_size)
        if point is None:
            missing = f"no reference point at or above batch size {batch_size}; the submitter owes one"
            return Verdict(False, missing, batch_size, finite, mean)
        passed = mean >= point.fastest - self._grace()
        text = (
            f"{_epochs(mean)} {'≥' if passed else '<'} {_epochs(point.fastest)}, the fastest that passes "
            f"(reference mean {_epochs(point.mean)}; {how})"
        )
        return Verdict(
            passed, text, batch_size, finite, mean, point, max(point.mean / mean, 1.0) if mean else 1.0
        )

    def _grace(self) -> float:
        return _GRACE.get(self._benchmark.key, 0)


def _epochs(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


@functools.cache
def load_points(benchmark_key: str, round_name: str) -> ReferencePoints | None:
    """The points for a round, for runs of our own those of `Benchmark.local_round` or the latest; None if none has."""
    benchmark = training_rules.BENCHMARKS.get(benchmark_key)
    if benchmark:
        round_name = benchmark.round(round_name)
    rounds = [round_name] if round_name in training_rules.ROUNDS else list(reversed(training_rules.ROUNDS))
    for name in rounds:
        path = _folder() / f"training_{name.removeprefix('v')}.0" / f"rcps_{benchmark_key}.json"
        if benchmark and path.is_file():
            raw = json.loads(path.read_bytes())
            points = [_raw_point(r) for r in raw.values()]
            return ReferencePoints(points, benchmark, benchmark.required_runs(name), name)
    return None


def _raw_point(record: dict) -> tuple[int, list[float]]:
    # "Epochs to converge", with some benchmarks "samples to converge"
    return record["BS"], next(value for name, value in record.items() if name.endswith("to converge"))


def _folder() -> Path:
    import mlperf_logging

    return Path(mlperf_logging.__file__).parent / "rcp_checker"


def epochs_to_converge(log: RunLog, benchmark: Benchmark, round_name: str) -> float:
    """Epochs (or samples) of the last evaluation before run_stop; infinite where the run did not converge."""
    if log.minutes is None or not reached(log, benchmark, round_name):
        return math.inf
    if benchmark.key == "stable_diffusion":
        return _first_good_image_model(log, benchmark.goals(round_name))
    stop = log.minutes + 1e-9
    epochs = [e.epoch for e in log.evaluations if e.epoch is not None and e.minutes <= stop]
    trained = number(log.value("train_samples"))
    if benchmark.key == "bert" and epochs and trained and epochs[-1] < (log.batch_size or 0):
        # All evaluations are called epoch 1: what the official checker has --bert_train_samples for.
        return trained
    return round(epochs[-1], 3) if epochs else math.inf


def _first_good_image_model(log: RunLog, goals: Sequence[Goal]) -> float:
    """Stable Diffusion is evaluated afterwards, FID and CLIP apart: the first step that passes both."""
    good = [
        e.epoch
        for e in log.evaluations
        if e.epoch is not None and goals_reached(goals, figures(goals, e.found))
    ]
    return min(good, default=math.inf)


def judge_result(logs: Sequence[RunLog], benchmark: Benchmark, round_name: str) -> Verdict:
    """Tests the runs of one result against the points of its round."""
    points = load_points(benchmark.key, round_name)
    if points is None:
        return Verdict(None, "there are no reference convergence points for this benchmark and round")
    counted = [log for log in logs if not log.resumed]
    sizes = {log.batch_size for log in counted}
    batch_size = sizes.pop() if len(sizes) == 1 else None
    if batch_size is None:
        return Verdict(None, "the logs hold no global_batch_size, or not the same")
    epochs = [epochs_to_converge(log, benchmark, round_name) for log in counted]
    if benchmark.key == "unet3d" and min(point.mean for point in points.points) > _UNET_MOST_EPOCHS:
        # From v3.1 on its points count samples, as submitters' logs do; the reference's own logs epochs.
        samples = [number(log.value("train_samples")) or 1 for log in counted]
        epochs = [e * n if e <= _UNET_MOST_EPOCHS else e for e, n in zip(epochs, samples, strict=True)]
    return points.judge(batch_size, epochs)
