"""Detections picked one after the other, the best first: exact where all anchors of all classes are candidates.

The rules of TensorFlow's Object Detection API (tensorflow/models, research/object_detection/core/post_processing.py,
multiclass_non_max_suppression), with static shapes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.suppression import Detections, filled


@dataclasses.dataclass(frozen=True)
class GreedySelection:
    """Which boxes become detections.

    Attributes:
        score: a box's class must have more than that.
        iou: of two boxes of a class that overlap more, the better stays.
        detections: the most in an image, of all classes.
    """

    score: float = 1e-8
    iou: float = 0.6
    detections: int = 100


def pick(corners: jax.Array, scores: jax.Array, selection: GreedySelection) -> Detections:
    """Suppresses what is not the best of its class and place.

    Suppression of each class apart, and then the best of all classes, come to this: the best of all that is left is
    picked, whatever its class, and what it overlaps is left out of that class only. A step costs one class of
    one image. Boxes suppress as they are; they are then cut at the image's edges, and what was outside is no detection.

    Args:
        corners: [B, A, 4].
        scores: [B, A, C], not negative, of labels 1 to C.
        selection: see there.
    """
    batch, anchors, _ = scores.shape
    most = selection.detections
    each = jnp.arange(batch)
    left = jnp.where(scores > selection.score, scores, 0).swapaxes(1, 2)  # [B, C, A]
    inside = box.area(corners.clip(0, 1)) > 0  # [B, A]
    nothing = (
        jnp.zeros((batch, most, 4), corners.dtype),
        jnp.zeros((batch, most), scores.dtype),
        jnp.zeros((batch, most), jnp.int32),
    )

    def step(carry: tuple) -> tuple:
        left, best, count, found = carry
        label = best.argmax(1)
        row = left[each, label]  # [B, A]
        anchor = row.argmax(1)
        score, here = row[each, anchor], corners[each, anchor]
        overlaps = box.iou(here[:, None], corners)[:, 0] > selection.iou
        row = jnp.where(overlaps | (jnp.arange(anchors) == anchor[:, None]), 0, row)
        left, best = left.at[each, label].set(row), best.at[each, label].set(row.max(1))
        counts = inside[each, anchor] & (score > 0)
        place = jnp.where(counts, count, most)  # beyond the last row nothing is written
        picked = (here.clip(0, 1), score, label.astype(jnp.int32) + 1)
        found = tuple(
            all_.at[each, place].set(one, mode="drop") for all_, one in zip(found, picked, strict=True)
        )
        return left, best, count + counts, found

    def goes_on(carry: tuple) -> jax.Array:
        _, best, count, _ = carry
        return jnp.any((count < most) & (best.max(1) > 0))

    start = (left, left.max(2), jnp.zeros(batch, jnp.int32), nothing)
    *_, found = jax.lax.while_loop(goes_on, step, start)
    return filled(*found, most)
