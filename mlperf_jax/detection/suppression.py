"""From scores at anchors to a fixed number of detections: non-maximum suppression with static shapes.

Source of every choice: mlcommons/training, retired_benchmarks/ssd-v1/ssd/{utils,train}.py.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mlperf_jax.detection import boxes as box


@dataclasses.dataclass(frozen=True)
class Detections:
    """What was found in images, best first; rows beyond what was found are 0.

    Attributes:
        corners: [B, K, 4].
        scores: [B, K].
        labels: [B, K] int32, 0 where nothing was found.
    """

    corners: jax.Array
    scores: jax.Array
    labels: jax.Array

    def rows(self) -> jax.Array:
        """[B, K, 6]: corners, score, label, in the scores' dtype."""
        return jnp.concatenate(
            [self.corners, self.scores[..., None], self.labels[..., None].astype(self.scores.dtype)], axis=-1
        )


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which boxes become detections.

    Attributes:
        score: a box's class must have more than that.
        candidates: the best of each class that are looked at.
        iou: of two boxes of a class that overlap as much or more, the better stays.
        detections: the most in an image, of all classes.
    """

    score: float = 0.05
    candidates: int = 200
    iou: float = 0.5
    detections: int = 200


def detect(codes: jax.Array, logits: jax.Array, anchors: ArrayLike, selection: Selection) -> Detections:
    """Decodes predictions of an SSD, whose scores are a softmax, and selects among them.

    Args:
        codes: [B, A, 4].
        logits: [B, A, C], class 0 the background.
        anchors: [A, 4] centres.
        selection: see there.
    """
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    corners = box.decode(codes.astype(wide), jnp.asarray(anchors, wide))
    return select(corners, jax.nn.softmax(logits.astype(wide))[..., 1:], selection)


def select(corners: jax.Array, scores: jax.Array, selection: Selection) -> Detections:
    """Suppresses what is not the best of its class and place.

    Args:
        corners: [B, A, 4].
        scores: [B, A, C], not negative, of labels 1 to C.
        selection: see there.
    """
    scores = scores.swapaxes(1, 2)  # [B, C, A]
    candidates = min(selection.candidates, scores.shape[-1])
    scores, rows = jax.lax.top_k(jnp.where(scores > selection.score, scores, 0), candidates)
    chosen = jax.vmap(lambda those, index: those[index])(corners, rows)  # [B, C, k, 4]
    scores = jnp.where(suppress(chosen, scores > 0, selection.iou), scores, 0)

    batch, classes, _ = scores.shape
    labels = jnp.broadcast_to(jnp.arange(1, classes + 1, dtype=jnp.int32)[:, None], scores.shape)
    found = min(selection.detections, classes * candidates)
    scores, best = jax.lax.top_k(scores.reshape(batch, -1), found)
    labels = box.rows_of(labels.reshape(batch, -1), best)
    chosen = box.rows_of(chosen.reshape(batch, -1, 4), best)
    return filled(chosen, scores, labels, selection.detections)


def filled(corners: jax.Array, scores: jax.Array, labels: jax.Array, detections: int) -> Detections:
    """Detections [B, k, ...], best first, as so many rows; those of score 0 are none."""
    there = scores > 0
    whole = [jnp.where(there[..., None], corners, 0), scores, jnp.where(there, labels, 0)]
    lacking = detections - scores.shape[1]
    return Detections(*(jnp.pad(x, ((0, 0), (0, lacking)) + ((0, 0),) * (x.ndim - 2)) for x in whole))


def suppress(corners: jax.Array, present: jax.Array, threshold: float) -> jax.Array:
    """Greedy non-maximum suppression: a box stays unless a better one that stays overlaps it.

    Args:
        corners: [..., k, 4], best first.
        present: [..., k], False for rows that are padding.
        threshold: the IoU from which on boxes overlap.

    Returns:
        [..., k], whether each stays.
    """
    k = corners.shape[-2]
    better = jnp.arange(k)[:, None] < jnp.arange(k)
    return undominated((box.iou(corners, corners) >= threshold) & better, present)


def undominated(dominates: jax.Array, present: jax.Array) -> jax.Array:
    """What stays if each drives out those that it dominates, unless it was driven out itself.

    The sequential rule is the only solution of stays[j] = present[j] and no i with stays[i] and
    dominates[i, j]: repeating that for all at once settles at least one more each time, and few
    repetitions suffice where chains are short.

    Args:
        dominates: [..., i, j], whether i is before j and drives it out.
        present: [..., j], False for rows that are padding.

    Returns:
        [..., j], whether each stays.
    """

    def settle(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        stays, _ = carry
        now = present & ~jnp.any(stays[..., :, None] & dominates, axis=-2)
        return now, jnp.any(now != stays)

    return jax.lax.while_loop(lambda carry: carry[1], settle, (present, jnp.any(present)))[0]
