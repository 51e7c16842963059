"""How many epochs the reference of a benchmark needed at a batch size."""

from __future__ import annotations

import dataclasses

from mlperf_jax.rounds import reference_points
from mlperf_jax.rounds.training_rules import LOCAL


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
    """The latest reference convergence point of a batch size, or between its two neighbours; None without any.

    Outside the range of batch sizes the nearest point stands, and `how` says so. Points that the rules'
    own test leaves out, because the reference was slow there, are among them: this is no test.
    """
    found = reference_points.load_points(benchmark, LOCAL)
    if found is None:
        return None
    means = {point.batch_size: point.mean for point in found.points}
    source = f"{benchmark} reference convergence points of {found.round_name}"
    if batch_size in means:
        return Convergence(means[batch_size], f"{source}, batch {batch_size}")
    low = max((size for size in means if size < batch_size), default=None)
    high = min((size for size in means if size > batch_size), default=None)
    if low is None or high is None:
        nearest = min(means, key=lambda size: abs(size - batch_size))
        how = f"{source}: none at {batch_size}, taken from the nearest batch, {nearest}"
        return Convergence(means[nearest], how)
    share = (batch_size - low) / (high - low)
    mean = means[low] + share * (means[high] - means[low])
    return Convergence(mean, f"{source}, between batch {low} and {high}")
