"""The order of batches whose examples are all of one bucket, in the global stream of `input_pipelines.base`."""

from __future__ import annotations

import numpy as np

from input_pipelines import base


def batch_of_a_bucket(
    step: int, of: np.ndarray, *, seed: int, batch_size: int, order: base.Order = base.epoch_permutation
) -> np.ndarray:
    """Which positions of the global stream a step's batch has, [batch_size] int64, rising: all of one bucket.

    The k-th batch of a bucket has the k-th `batch_size` positions of its examples, and stands where the last of them
    does: batches are in the order in which they became full. A pure function of its arguments, whatever went before.

    Args:
        step: counts from 0.
        of: [N] int64, the bucket of each example.
        seed: of the stream.
        batch_size: of the global batch.
        order: of the epochs of the stream.
    """
    counts = np.bincount(of)

    def full(epochs: int) -> np.ndarray:
        """Of each bucket, how many batches are full after so many epochs."""
        return epochs * counts // batch_size

    def offsets(epoch: int) -> np.ndarray:
        """Where in an epoch's order the examples of the buckets are: bucket by bucket."""
        here = of[order(seed, epoch, len(of))]
        return np.argsort(here, kind="stable")

    epoch = step * batch_size // len(of)
    while full(epoch + 1).sum() <= step:
        epoch += 1
    before, starts, here = full(epoch), np.cumsum(counts) - counts, offsets(epoch)
    ends = [
        (here[starts[bucket] + (k + 1) * batch_size - 1 - epoch * counts[bucket]], bucket, k)
        for bucket, last in enumerate(full(epoch + 1).tolist())
        for k in range(before[bucket], last)
    ]
    _, bucket, k = sorted(ends)[step - before.sum()]
    epochs, ranks = np.divmod(np.arange(k * batch_size, (k + 1) * batch_size), counts[bucket])
    found = [
        e * len(of) + offsets(e)[starts[bucket] + ranks[epochs == e]] for e in np.unique(epochs).tolist()
    ]
    return np.concatenate(found)
