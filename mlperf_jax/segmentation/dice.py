"""How well voxels' classes overlap with the true ones (Dice), as a loss and as a figure.

Source: mlcommons/training, retired_benchmarks/unet3d/pytorch/model/losses.py: the background counts for the
cross-entropy, not for Dice.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

SMOOTH = 1e-6
"""Added above and below, so that a class that is neither there nor found has 1."""


def dice_and_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Half of the cross-entropy, and half of what Dice of the probabilities lacks to 1.

    Args:
        logits: [B, D, H, W, K].
        labels: [B, D, H, W] whole numbers in [0, K).

    Returns:
        [B] in at least float32, the mean over a sample's voxels, and over its classes without background.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    places = (1, 2, 3)
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    log_probabilities = jax.nn.log_softmax(logits)
    entropy = -(true * log_probabilities).sum(-1).mean(places)
    found = jnp.exp(log_probabilities)
    overlap = dice((true * found).sum(places), true.sum(places), found.sum(places))
    return (entropy + (1 - overlap[:, 1:]).mean(-1)) / 2


def dice(both: Any, true: Any, found: Any) -> Any:
    """Twice what is in both, over the sum of the two; sizes of any shape, jax's arrays or NumPy's."""
    return (2 * both + SMOOTH) / (true + found + SMOOTH)


def overlaps(labels: jax.Array, found: jax.Array, num_classes: int, not_counted: int) -> jax.Array:
    """Dice of every class but the background.

    Args:
        labels: [B, D, H, W] whole numbers.
        found: the same of what was predicted.
        num_classes: K.
        not_counted: the label of voxels that count for nothing.

    Returns:
        [B, K - 1] in at least float32.
    """
    counted = labels != not_counted
    sizes = []
    for label in range(1, num_classes):
        true, seen = labels == label, (found == label) & counted
        # As whole numbers: float32 counts to 16 million, and a volume has more voxels.
        sizes.append([jnp.sum(mask, (1, 2, 3), dtype=jnp.int32) for mask in (true & seen, true, seen)])
    both, true, seen = (jnp.stack(column, -1).astype(float) for column in zip(*sizes, strict=True))
    return dice(both, true, seen)
