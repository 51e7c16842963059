"""Which anchor shall predict which box by bounds of their overlap, and RetinaNet's loss (arXiv:1708.02002).

Source of every choice: mlcommons/training, retired_benchmarks/retinanet/ssd/model/{utils,focal_loss,
retinanet}.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.levels import VARIANCES

BACKGROUND_BELOW, MATCHED_FROM = 0.4, 0.5  # of the IoU
ALPHA, GAMMA = 0.25, 2
IGNORED = -1
_AT_ONCE = 8  # boxes whose overlaps with all anchors are in memory


def match(
    corners: jax.Array,
    labels: jax.Array,
    anchors: jax.Array,
    *,
    background_below: float = BACKGROUND_BELOW,
    matched_from: float = MATCHED_FROM,
) -> tuple[jax.Array, jax.Array]:
    """Assigns boxes to anchors, image by image.

    An anchor's box is the one that it overlaps most (of equal ones the first), if their IoU is `matched_from` or
    more, or if no anchor overlaps some box more than this one does, be it another box. Of the others those that
    overlap a box by `background_below` or more belong to nothing, the rest to the background. A box without area,
    or that overlaps no anchor, takes no part.

    Args:
        corners: [B, M, 4]; rows of label 0 are padding, which had best come last: no time is spent on it.
        labels: [B, M] int32.
        anchors: [A, 4] corners, in the same unit.
        background_below, matched_from: of the IoU; by default RetinaNet's.

    Returns:
        [B, A] int32, the row of each anchor's box (any where it has none), and [B, A] int32, its label, 0
        for the background, `IGNORED` for nothing.
    """
    images, most_boxes = labels.shape
    rows = ((0, 0), (0, -most_boxes % _AT_ONCE))
    real = jnp.pad((labels > 0) & (box.area(corners) > 0), rows)
    boxes = jnp.pad(corners, (*rows, (0, 0)))

    def look(block: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, best, wanted = carry
        first = block.astype(jnp.int32) * _AT_ONCE
        some, are_real = (lax.dynamic_slice_in_dim(x, first, _AT_ONCE, axis=1) for x in (boxes, real))
        overlaps = jnp.where(are_real[..., None], box.iou(some, anchors), -1)  # [B, _AT_ONCE, A]
        # Computed once: computed again beside each reader, equal ones might differ by rounding.
        overlaps = lax.optimization_barrier(overlaps)
        here = overlaps.max(1)
        best = jnp.where(here > most, first + overlaps.argmax(1).astype(jnp.int32), best)
        highest = overlaps.max(2, keepdims=True)
        wanted |= ((overlaps == highest) & (highest > 0)).any(1)
        return jnp.maximum(here, most), best, wanted

    shape = images, len(anchors)
    none = jnp.full(shape, -1, corners.dtype), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    blocks = real.reshape(images, -1, _AT_ONCE).any((0, 2))
    used = jnp.where(blocks, jnp.arange(1, len(blocks) + 1, dtype=jnp.int32), 0).max()
    most, best, wanted = lax.fori_loop(0, used, look, none)
    matched = (most >= matched_from) | wanted
    unmatched = jnp.where(most >= background_below, IGNORED, 0)
    found = box.rows_of(labels, best)
    return best, jnp.where(matched, found, unmatched).astype(jnp.int32)


def retinanet_loss(
    codes: Sequence[jax.Array],
    logits: Sequence[jax.Array],
    corners: jax.Array,
    labels: jax.Array,
    anchors: Sequence[np.ndarray],
) -> jax.Array:
    """Focal loss of classes plus L1 of box codes over the matched anchors, in at least float32.

    An image's sum is divided by the number of its matched anchors, if there are any; anchors that belong
    to nothing do not count.

    Args:
        codes: [B, A, 4] predicted, for every level.
        logits: [B, A, C] for every level.
        corners: [B, M, 4] true boxes, in pixels.
        labels: [B, M] int32, of which label n is class n - 1; 0 for padding.
        anchors: [A, 4] centres in pixels, for every level.

    Returns:
        The loss of each image, [B].
    """
    wide = jnp.promote_types(logits[0].dtype, jnp.float32)
    corners = corners.astype(wide)
    centres = np.concatenate(anchors).astype(wide)
    places, covered = jnp.asarray(centres), jnp.asarray(box.to_corners(centres))
    rows, targets = match(corners, labels, covered)
    matched = targets > 0
    wanted = box.rows_of(corners, rows)
    # Anchors that match nothing have any box, padding too, whose logarithm is no number.
    wanted = jnp.where(matched[..., None], wanted, covered)
    wanted = box.encode(wanted, places, VARIANCES)

    total = jnp.zeros(len(labels), wide)
    ends = np.cumsum([len(level) for level in anchors])
    for level_codes, level_logits, end in zip(codes, logits, ends, strict=True):
        here = slice(end - level_codes.shape[1], end)
        apart = jnp.abs(level_codes.astype(wide) - wanted[:, here]).sum(-1)
        total += jnp.where(matched[:, here], apart, 0).sum(1)
        total += focal_loss(level_logits, targets[:, here])
    return total / jnp.maximum(matched.sum(1), 1)


@jax.checkpoint
def focal_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The sum over anchors and classes of -alpha (1 - p)**gamma log p, p what is given to the truth; [B].

    alpha is .25 of what is there and .75 of what is not. The gradient computes it again: of logits
    [B, A, C] nothing else stays in memory.

    Args:
        logits: [B, A, C].
        targets: [B, A] int32: n for class n - 1, 0 for none, `IGNORED` for what does not count.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    there = targets[..., None] == jnp.arange(1, logits.shape[-1] + 1)
    signed = jnp.where(there, logits, -logits)
    losses = -jax.nn.log_sigmoid(signed) * jax.nn.sigmoid(-signed) ** GAMMA
    losses *= jnp.where(there, ALPHA, 1 - ALPHA)
    return jnp.where((targets != IGNORED)[..., None], losses, 0).sum((1, 2))
