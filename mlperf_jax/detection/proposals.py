"""The first of two stages: which boxes may hold something (Ren et al., arXiv:1506.01497), over the levels of a pyramid.

Source of every choice: mlcommons/training, retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark/modeling/rpn.
There a box ends with its last pixel, here one further, which makes the same of codes, areas and overlaps: a box
has at least one pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.focal import IGNORED, match
from mlperf_jax.detection.levels import LARGEST, RATIOS, VARIANCES
from mlperf_jax.detection.sampling import sample
from mlperf_jax.detection.suppression import undominated
from mlperf_jax.detection.training import smooth_l1

BACKGROUND_BELOW, MATCHED_FROM = 0.3, 0.7  # of the IoU
EXAMPLES, POSITIVE = 256, 0.5  # of an image, and the share that may hold something
BETA = 1 / 9  # up to which the loss of a code is a square


def proposal_anchors(
    maps: Sequence[tuple[int, int]], strides: Sequence[int], sizes: Sequence[float]
) -> list[np.ndarray]:
    """The anchors of every level, [A, 4] float32 as (x, y, width, height) of the centre, in pixels.

    Row by row and cell by cell three follow one another, one of each ratio of height to width. Their sides are
    rounded at the size of a cell and then enlarged, so that they are not exactly of these ratios.

    Args:
        maps: height and width of every level, in cells.
        strides: pixels from cell to cell.
        sizes: side of the square anchor of every level, in pixels.
    """
    levels = []
    for (height, width), stride, size in zip(maps, strides, sizes, strict=True):
        across = np.sqrt(stride**2 / np.array(RATIOS)).round()
        extents = np.stack([across, (across * RATIOS).round()], 1) * (size / stride)
        y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        centres = np.stack([x.ravel(), y.ravel()], 1) * stride + stride / 2
        centres = np.repeat(centres, len(extents), axis=0)
        levels.append(np.concatenate([centres, np.tile(extents, (height * width, 1))], 1).astype(np.float32))
    return levels


def proposal_loss(
    logits: Sequence[jax.Array],
    codes: Sequence[jax.Array],
    corners: jax.Array,
    labels: jax.Array,
    sizes: jax.Array,
    anchors: Sequence[np.ndarray],
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Losses of what anchors may hold and of where exactly that is, both over the examples drawn, in float32 or more.

    An anchor that reaches out of its image is no example.

    Args:
        logits: [B, A] of every level.
        codes: [B, A, 4] of every level.
        corners: [B, M, 4] true boxes, in pixels.
        labels: [B, M] int32, 0 for padding.
        sizes: [B, 2] height and width of the images without padding, in pixels.
        anchors: [A, 4] centres of every level.
        key: of the draw.

    Returns:
        The mean cross-entropy of the batch's examples, and the sum of its positive examples' smooth L1 over their
        number.
    """
    wide = jnp.promote_types(logits[0].dtype, jnp.float32)
    centres = np.concatenate(anchors).astype(wide)
    places, covered = jnp.asarray(centres), box.to_corners(centres)
    corners = corners.astype(wide)
    rows, targets = match(
        corners,
        labels,
        jnp.asarray(covered),
        background_below=BACKGROUND_BELOW,
        matched_from=MATCHED_FROM,
    )
    targets = jnp.where(_inside(covered, sizes), targets, IGNORED)
    chosen, counted = sample(targets, key, EXAMPLES, POSITIVE)

    of = functools.partial(box.rows_of, rows=chosen)
    positive = counted & (of(targets) > 0)
    found_logits = of(jnp.concatenate(logits, axis=1)).astype(wide)
    found_codes = of(jnp.concatenate(codes, axis=1)).astype(wide)
    at = places[chosen]
    true = box.rows_of(corners, of(rows))
    # What is not positive has any box, padding too, whose logarithm is no number.
    true = jnp.where(positive[..., None], true, box.to_corners(at))
    count = jnp.maximum(counted.sum(), 1)
    entropy = -jax.nn.log_sigmoid(jnp.where(positive, found_logits, -found_logits))
    apart = BETA * smooth_l1((found_codes - box.encode(true, at, VARIANCES)) / BETA).sum(-1)
    return jnp.where(counted, entropy, 0).sum() / count, jnp.where(positive, apart, 0).sum() / count


def _inside(corners: np.ndarray, sizes: jax.Array) -> jax.Array:
    """[B, A], whether boxes [A, 4] lie in images of sizes [B, 2]: begin there and end within a pixel beyond."""
    limits = sizes[:, None, ::-1].astype(corners.dtype)
    return (limits + 1 > corners[:, 2:]).all(-1) & (corners[:, :2] >= 0).all(-1)


def clipped(corners: jax.Array, sizes: jax.Array) -> jax.Array:
    """Boxes [B, ..., 4] cut off at the borders of images of sizes [B, 2]; what lies outside keeps a pixel."""
    sizes = sizes[:, ::-1].astype(corners.dtype)
    limits = sizes.reshape(len(sizes), *(1,) * (corners.ndim - 2), 2)
    first = jnp.clip(corners[..., :2], 0, limits - 1)
    return jnp.concatenate([first, jnp.clip(corners[..., 2:], 1, limits)], axis=-1)


def propose(
    logits: Sequence[jax.Array],
    codes: Sequence[jax.Array],
    sizes: jax.Array,
    anchors: Sequence[np.ndarray],
    *,
    candidates: int,
    iou: float,
    count: int,
) -> tuple[jax.Array, jax.Array]:
    """The best boxes of every level, of these what no better one of its level covers, and of those the best.

    The reference keeps so many of a level first and then so many of all: the same where the one number is not less
    than the other. In training it takes the best of a batch's images together; here every image has its own.
    No gradient passes.

    Args:
        logits: [B, A] of every level.
        codes: [B, A, 4] of every level.
        sizes: [B, 2] height and width of the images without padding, in pixels.
        anchors: [A, 4] centres of every level.
        candidates: of each level that are looked at.
        iou: boxes that overlap more cover each other.
        count: of an image, P.

    Returns:
        Boxes [B, P, 4] in pixels, best first, and [B, P], False for rows that are padding.
    """
    wide = jnp.promote_types(logits[0].dtype, jnp.float32)
    parts = []
    for level_logits, level_codes, places in zip(logits, codes, anchors, strict=True):
        most = min(candidates, level_logits.shape[1])
        best, rows = jax.lax.top_k(jax.lax.stop_gradient(level_logits).astype(wide), most)
        some = box.rows_of(jax.lax.stop_gradient(level_codes), rows).astype(wide)
        corners = box.decode(some, jnp.asarray(places, wide)[rows], VARIANCES, LARGEST)
        lacking = (0, 0), (0, candidates - most)
        parts.append((jnp.pad(best, lacking, constant_values=-jnp.inf), jnp.pad(corners, (*lacking, (0, 0)))))
    # All levels at once: the steps of suppression are as many as the longest level needs.
    best, corners = (jnp.stack(part, axis=1) for part in zip(*parts, strict=True))
    corners = clipped(corners, sizes)
    better = jnp.arange(candidates)[:, None] < jnp.arange(candidates)
    stays = undominated((box.iou(corners, corners) > iou) & better, best > -jnp.inf)
    best = jnp.where(stays, best, -jnp.inf).reshape(len(best), -1)
    best, rows = jax.lax.top_k(best, min(count, best.shape[1]))
    corners = box.rows_of(corners.reshape(len(corners), -1, 4), rows)
    lacking = (0, 0), (0, count - best.shape[1])
    return jnp.pad(corners, (*lacking, (0, 0))), jnp.pad(best > -jnp.inf, lacking)
