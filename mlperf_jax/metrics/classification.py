"""Classification: the training loss, and accuracy totals that stay on the device until fetched.

A mask marks real examples with 1 and padding with 0, so that the last, padded batch of an
evaluation counts each example once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Totals = dict[str, jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy of each example, in the logits' dtype (at least float32).

    With smoothing s, the target is 1 - s + s / K for the label and s / K for the other of K classes
    (Szegedy et al., arXiv:1512.00567).

    Args:
        logits: [B, K].
        labels: [B], integers in [0, K).
        label_smoothing: s.

    Returns:
        [B].
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    of_label = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return -(1 - label_smoothing) * of_label - label_smoothing * log_p.mean(1)


def init() -> Totals:
    """Totals before the first batch: scalars `correct` int32, `count` int32 and `loss` float32."""
    return {
        "correct": jnp.zeros((), jnp.int32),
        "count": jnp.zeros((), jnp.int32),
        "loss": jnp.zeros((), jnp.float32),
    }


def update(totals: Totals, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Totals:
    """Adds a batch: logits [B, K], labels [B], mask [B] (1 real, 0 padding). Counts stay exact to 2**31."""
    real = mask > 0
    correct = (logits.argmax(1) == labels) & real
    losses = jnp.where(real, cross_entropy(logits, labels), 0)
    return {
        "correct": totals["correct"] + correct.sum(dtype=jnp.int32),
        "count": totals["count"] + real.sum(dtype=jnp.int32),
        "loss": totals["loss"] + losses.sum().astype(jnp.float32),
    }


def compute(totals: Totals) -> dict[str, float]:
    """Host values: `accuracy` (top-1, of 1), `loss` (mean, without smoothing) and `count` (examples seen)."""
    count = int(totals["count"])
    examples = max(count, 1)
    return {
        "accuracy": int(totals["correct"]) / examples,
        "loss": float(totals["loss"]) / examples,
        "count": count,
    }
