"""Exact area under the ROC curve, counted on the device.

Scores of all examples stay where they were computed; once they are complete, one sort brings them in
order, and the pairs of a positive and a negative example that are in the right order are counted, pairs
of equal scores as half. Counts reach 10**15 for Criteo's 89 million examples, beyond int32 and far
beyond what float32 adds up exactly, so they are summed in limbs and joined on the host.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

Totals = dict[str, jax.Array]

_Array = jax.Array | np.ndarray

_LIMB_BITS = 14
_BLOCK = 1 << (31 - _LIMB_BITS - 1)  # so many limbs add up in int32
MOST_EXAMPLES = 1 << (2 * _LIMB_BITS - 1)
"""134 million: twice as many negatives fit into two limbs."""


def init(num_batches: int, batch_size: int, dtype: DTypeLike) -> Totals:
    """Totals before the first batch.

    Args:
        num_batches: of the evaluation.
        batch_size: of the global batch.
        dtype: of the scores.

    Returns:
        `score` [N, B]; `kind` [N, B] int8: 1 positive, 0 negative, -1 padding; `batch` int32 [], the next.

    Raises:
        ValueError: there are more examples than can be counted.
    """
    if num_batches * batch_size > MOST_EXAMPLES:
        raise ValueError(f"more than {MOST_EXAMPLES} examples cannot be counted")
    return {
        "score": jnp.zeros((num_batches, batch_size), dtype),
        "kind": jnp.full((num_batches, batch_size), -1, jnp.int8),
        "batch": jnp.zeros((), jnp.int32),
    }


def update(totals: Totals, score: _Array, label: _Array, mask: _Array) -> Totals:
    """Adds a batch: scores [B], labels [B] (0 or 1), mask [B] (1 real, 0 padding)."""
    kind = jnp.where(mask > 0, label > 0, -1).astype(jnp.int8)
    here = totals["batch"]
    return {
        "score": lax.dynamic_update_index_in_dim(totals["score"], score, here, 0),
        "kind": lax.dynamic_update_index_in_dim(totals["kind"], kind, here, 0),
        "batch": here + 1,
    }


def count(totals: Totals) -> dict[str, jax.Array]:
    """Counts pairs in the right order; a small result, exact, for `compute`.

    A positive example counts 2 for every negative below it and 1 for every negative of the same score.
    """
    score, kind = lax.sort((totals["score"].ravel(), totals["kind"].ravel()), num_keys=1)
    negative = (kind == 0).astype(jnp.int32)
    through = jnp.cumsum(negative, dtype=jnp.int32)
    edge = score[1:] != score[:-1]
    first = jnp.concatenate([jnp.ones(1, bool), edge])  # of equal scores
    last = jnp.concatenate([edge, jnp.ones(1, bool)])
    below = lax.cummax(jnp.where(first, through - negative, 0))
    with_equals = lax.cummin(jnp.where(last, through, jnp.iinfo(jnp.int32).max), reverse=True)
    pairs = jnp.where(kind == 1, below + with_equals, 0)
    low, high = pairs & ((1 << _LIMB_BITS) - 1), pairs >> _LIMB_BITS
    return {
        "low": _block_sums(low),
        "high": _block_sums(high),
        "positives": (kind == 1).sum(dtype=jnp.int32),
        "negatives": through[-1],
        "finite": jnp.isfinite(score).all(),
    }


def _block_sums(x: jax.Array) -> jax.Array:
    return jnp.pad(x, (0, -len(x) % _BLOCK)).reshape(-1, _BLOCK).sum(1, dtype=jnp.int32)


def compute(counts: dict[str, np.ndarray]) -> float:
    """The area, from what `count` gave; nan where a score is, or where one of the two kinds is missing."""
    positives, negatives = int(counts["positives"]), int(counts["negatives"])
    if not (counts["finite"] and positives and negatives):
        return math.nan
    low, high = (int(np.sum(counts[limb], dtype=np.int64)) for limb in ("low", "high"))
    return (low + (high << _LIMB_BITS)) / (2 * positives * negatives)


def area(score: np.ndarray, label: np.ndarray) -> float:
    """The area for scores and labels [N] that lie on the host."""
    totals = update(init(1, len(score), score.dtype), score, label, np.ones(len(score), np.float32))
    return compute(jax.device_get(jax.jit(count)(totals)))
