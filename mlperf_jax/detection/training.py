"""Which anchor shall predict which box, and SSD's loss (arXiv:1512.02325, section 2.2).

Source of every choice: mlcommons/training, retired_benchmarks/ssd-v1/ssd/{utils,base_model}.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mlperf_jax.detection import boxes as box
from mlperf_jax.platform import compiled_for

IOU_THRESHOLD = 0.5
NEGATIVES_PER_POSITIVE = 3


def match(corners: jax.Array, labels: jax.Array, anchors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Assigns the boxes of one image to anchors.

    An anchor takes the box that it overlaps most (of equal ones the first) if their IoU is above .5.
    Besides, the anchor that a box overlaps most is that box's; where several boxes want one anchor, the
    last has it. A box without area, which has no code, takes no part: in the reference it makes the loss
    infinite.

    Args:
        corners: [M, 4]; rows of label 0 are padding.
        labels: [M] int32.
        anchors: [A, 4] centres.

    Returns:
        [A] int32, the row of each anchor's box (any where it has none), and [A] int32, its label, 0 for
        the background.
    """
    real = (labels > 0) & (box.area(corners) > 0)
    overlaps = jnp.where(real[:, None], box.iou(corners, box.to_corners(anchors)), -1)  # [M, A]
    best = overlaps.argmax(0)
    found = overlaps.max(0) > IOU_THRESHOLD
    rows = jnp.where(real, jnp.arange(len(labels)), -1)
    # The largest row wins whatever the order of execution, which `set` would not promise.
    wanted = jnp.full(len(anchors), -1).at[overlaps.argmax(1)].max(rows)
    best = jnp.where(wanted >= 0, wanted, best).astype(jnp.int32)
    return best, jnp.where(found | (wanted >= 0), labels[best], 0)


def multibox_loss(
    codes: jax.Array, logits: jax.Array, corners: jax.Array, labels: jax.Array, anchors: ArrayLike
) -> jax.Array:
    """Smooth L1 of boxes plus cross-entropy of classes over the matched anchors, in at least float32.

    Of the other anchors those with the largest cross-entropy count, three for each that is matched. An
    image's sum is divided by the number of its matched anchors; an image without any has loss 0.

    Args:
        codes: [B, A, 4] predicted.
        logits: [B, A, C].
        corners: [B, M, 4] true boxes.
        labels: [B, M] int32, 0 for padding.
        anchors: [A, 4] centres.

    Returns:
        The loss of each image, [B].
    """
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    codes, logits = codes.astype(wide), logits.astype(wide)
    corners, anchors = corners.astype(wide), jnp.asarray(anchors, wide)
    rows, targets = jax.vmap(match, (0, 0, None))(corners, labels, anchors)
    matched = targets > 0  # [B, A]
    count = matched.sum(1)

    wanted = box.rows_of(corners, rows)
    # Anchors that match nothing have any box, padding too, whose logarithm must not reach a gradient.
    wanted = jnp.where(matched[..., None], wanted, box.to_corners(anchors))
    located = jnp.where(matched, smooth_l1(codes - box.encode(wanted, anchors)).sum(-1), 0).sum(1)

    log_p = jax.nn.log_softmax(logits)
    entropy = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]  # [B, A]
    negative = jnp.where(matched, 0, entropy)
    if compiled_for() == "cpu":
        mined = largest(negative, NEGATIVES_PER_POSITIVE * count)
    else:  # the TPU compiler (v5e) does not estimate that `largest` takes fewer cycles
        negative = -jnp.sort(-negative, axis=1)
        mined = jnp.arange(negative.shape[1]) < NEGATIVES_PER_POSITIVE * count[:, None]
    classified = jnp.where(matched, entropy, 0).sum(1) + jnp.where(mined, negative, 0).sum(1)

    return jnp.where(count > 0, (located + classified) / jnp.maximum(count, 1), 0)


def largest(x: jax.Array, count: jax.Array) -> jax.Array:
    """Marks the `count` largest of each row, of equal ones the first: what a stable sort would begin with.

    The bits of floats that are not negative are in the order of the numbers. So the bits of the last number
    that is still marked are found one by one, from the highest, by counting the numbers that are not below:
    32 passes over x, where XLA:CPU sorts with a comparison at a time.

    Args:
        x: [B, A] float32 or float64, not negative.
        count: [B] int.

    Returns:
        [B, A] bool.
    """
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int64 if x.dtype.itemsize == 8 else jnp.int32)
    wanted = count[:, None]

    def next_bit(n: jax.Array, last: jax.Array) -> jax.Array:
        tried = last | (jnp.ones((), bits.dtype) << (8 * bits.dtype.itemsize - 2 - n))
        enough = (bits >= tried).sum(1, keepdims=True) >= wanted
        return jnp.where(enough, tried, last)

    last = jax.lax.fori_loop(0, 8 * bits.dtype.itemsize - 1, next_bit, jnp.zeros_like(bits[:, :1]))
    above, equal = bits > last, bits == last
    left = wanted - above.sum(1, keepdims=True)
    return above | (equal & (jnp.cumsum(equal, axis=1) <= left))


def smooth_l1(x: jax.Array) -> jax.Array:
    """Half the square up to 1, and from there on as steep as there."""
    size = jnp.abs(x)
    return jnp.where(size < 1, jnp.square(x) / 2, size - 0.5)
