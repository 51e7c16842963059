"""Which anchor shall predict which box, and the loss, as TensorFlow's Object Detection API trains an SSD.

Source of every choice: tensorflow/models, research/object_detection: matchers/argmax_matcher.py, core/losses.py
(WeightedSigmoidClassificationLoss, WeightedSmoothL1LocalizationLoss, HardExampleMiner) and
meta_architectures/ssd_meta_arch.py, with the numbers of samples/configs/ssd_mobilenet_v1_coco.config. Its bound of
3,000 mined anchors is above the 1,917 that there are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.suppression import undominated
from mlperf_jax.detection.training import NEGATIVES_PER_POSITIVE, largest, smooth_l1

IOU_THRESHOLD = 0.5


def match(corners: jax.Array, labels: jax.Array, anchors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Assigns the boxes of one image to anchors.

    An anchor takes the box that it overlaps most (of equal ones the first) if their IoU is .5 or more. Besides, the
    anchor that a box overlaps most is that box's; where several boxes want one anchor, the first has it. A box without
    area takes no part; the reference gives it an anchor with a code near the logarithm of nothing.

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
    found = overlaps.max(0) >= IOU_THRESHOLD
    none = len(labels)
    rows = jnp.where(real, jnp.arange(none), none)
    # The smallest row wins whatever the order of execution, which `set` would not promise.
    wanted = jnp.full(len(anchors), none).at[overlaps.argmax(1)].min(rows)
    best = jnp.where(wanted < none, wanted, best).astype(jnp.int32)
    return best, jnp.where(found | (wanted < none), labels[best], 0)


def mined_loss(
    codes: jax.Array,
    logits: jax.Array,
    corners: jax.Array,
    labels: jax.Array,
    anchors: ArrayLike,
    *,
    mining_iou: float,
) -> tuple[jax.Array, jax.Array]:
    """Smooth L1 of boxes plus binary cross-entropies of all classes, over the anchors that are mined.

    The background is a class of its own. In at least float32.

    Args:
        codes: [B, A, 4] predicted.
        logits: [B, A, C].
        corners: [B, M, 4] true boxes.
        labels: [B, M] int32, 0 for padding.
        anchors: [A, 4] centres.
        mining_iou: see `mined`.

    Returns:
        The sum over the batch [], and its weight []: the number of matched anchors, mined or not, at least 1.
    """
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    codes, logits = codes.astype(wide), logits.astype(wide)
    corners, anchors = corners.astype(wide), jnp.asarray(anchors, wide)
    rows, targets = jax.vmap(match, (0, 0, None))(corners, labels, anchors)
    matched = targets > 0  # [B, A]

    wanted = box.rows_of(corners, rows)
    # Anchors that match nothing have any box, padding too, whose logarithm must not reach a gradient.
    wanted = jnp.where(matched[..., None], wanted, box.to_corners(anchors))
    located = jnp.where(matched, smooth_l1(codes - box.encode(wanted, anchors)).sum(-1), 0)
    of_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    classified = jax.nn.softplus(logits).sum(-1) - of_target  # [B, A]

    predicted = box.decode(jax.lax.stop_gradient(codes), anchors)
    chosen = mined(jax.lax.stop_gradient(classified), predicted, matched, mining_iou)
    total = jnp.where(chosen, located + classified, 0).sum()
    return total, jnp.maximum(matched.sum(), 1).astype(wide)


def mined(losses: jax.Array, corners: jax.Array, matched: jax.Array, iou: float) -> jax.Array:
    """The anchors that count: matched ones, and for each of these three others, those with the largest losses.

    Before that, an anchor is left out, matched or not, if its predicted box overlaps by more than `iou` that of one
    that is not left out and has a larger loss (of equal ones the first).

    Args:
        losses: [B, A], positive.
        corners: [B, A, 4] as predicted.
        matched: [B, A] bool.
        iou: from 1 on nothing is left out.

    Returns:
        [B, A] bool.
    """
    stays = jnp.ones_like(matched)
    if iou < 1:
        place = jnp.arange(losses.shape[1])
        first = place[:, None] < place
        mine, other = losses[:, :, None], losses[:, None, :]
        better = (mine > other) | ((mine == other) & first)
        stays = undominated((box.iou(corners, corners) > iou) & better, stays)
    positive = stays & matched
    count = NEGATIVES_PER_POSITIVE * positive.sum(1)
    negative = stays & ~matched
    return positive | (negative & largest(jnp.where(negative, losses, 0), count))
