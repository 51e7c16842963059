"""The second of two stages: what boxes hold, where exactly it is, and which of their pixels it covers.

Source of every choice: mlcommons/training, retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark/modeling/roi_heads.

**Masks.** An object's true mask comes as bits on a grid of G x G cells over its own box, made on the host once
(`input_pipelines`). So it is small, 112 x 112 bits are 1.5 kB where the image's would be 130 kB, of one size for
every object, and finer than what it is compared to: a box that is trained on covers half of it or more. Polygons
themselves, which the reference clips for every box anew, have no fixed number of corners.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.levels import LARGEST, pick
from mlperf_jax.detection.proposals import clipped
from mlperf_jax.detection.sampling import sample
from mlperf_jax.detection.suppression import Detections, Selection
from mlperf_jax.detection.training import smooth_l1

MATCHED_FROM = 0.5  # of the IoU; below is background


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Regions:
    """Boxes to train the heads with, those that hold something first.

    Attributes:
        corners: [B, N, 4] in pixels.
        labels: [B, N] int32: 0 for background, -1 for rows that are padding.
        rows: [B, N] int32, the true box that each was matched with (any where it holds nothing).
    """

    corners: jax.Array
    labels: jax.Array
    rows: jax.Array

    def first(self, count: int) -> Regions:
        """The first so many of every image."""
        return Regions(self.corners[:, :count], self.labels[:, :count], self.rows[:, :count])


def draw_regions(
    proposals: jax.Array,
    present: jax.Array,
    corners: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    count: int,
    share: float,
) -> Regions:
    """Draws boxes to train on among proposals and the true boxes themselves.

    A box holds what it overlaps most (of equal ones the first), if their IoU is .5 or more. A true box without
    area takes no part.

    Args:
        proposals: [B, P, 4] in pixels.
        present: [B, P], False for rows that are padding.
        corners: [B, M, 4] true boxes, in pixels.
        labels: [B, M] int32, 0 for padding.
        key: of the draw.
        count: of boxes in an image, N.
        share: of them that may hold something.
    """
    real = (labels > 0) & (box.area(corners) > 0)
    corners = corners.astype(proposals.dtype)
    proposals = jax.lax.stop_gradient(jnp.concatenate([proposals, corners], axis=1))
    present = jnp.concatenate([present, real], axis=1)
    overlaps = jnp.where(real[..., None], box.iou(corners, proposals), -1)  # [B, M, P + M]
    rows = overlaps.argmax(1).astype(jnp.int32)
    found = jnp.where(overlaps.max(1) >= MATCHED_FROM, box.rows_of(labels, rows), 0)
    found = jnp.where(present, found, -1)
    places, counted = sample(found, key, count, share)
    return Regions(
        box.rows_of(proposals, places),
        jnp.where(counted, box.rows_of(found, places), -1).astype(jnp.int32),
        box.rows_of(rows, places),
    )


def region_loss(
    logits: jax.Array, codes: jax.Array, regions: Regions, corners: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Losses of what boxes hold and of where exactly that is, in float32 or more.

    Args:
        logits: [B, N, C], class 0 the background.
        codes: [B, N, C, 4], of which the true class's count.
        regions: the boxes.
        corners: [B, M, 4] true boxes, in pixels.

    Returns:
        The mean cross-entropy of the batch's boxes, and the sum of smooth L1 of those that hold something, over the
        number of all.
    """
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    labels, at = jnp.maximum(regions.labels, 0), box.to_centres(regions.corners.astype(wide))
    counted, positive = regions.labels >= 0, regions.labels > 0
    count = jnp.maximum(counted.sum(), 1)
    log_p = jax.nn.log_softmax(logits.astype(wide))
    entropy = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    true = box.rows_of(corners.astype(wide), regions.rows)
    # What holds nothing, padding too, may have no area, whose logarithm must not reach a gradient.
    at = jnp.where(positive[..., None], at, 1)
    true = jnp.where(positive[..., None], true, box.to_corners(at))
    found = jnp.take_along_axis(codes, labels[..., None, None], axis=2)[:, :, 0].astype(wide)
    apart = smooth_l1(found - box.encode(true, at)).sum(-1)
    return jnp.where(counted, entropy, 0).sum() / count, jnp.where(positive, apart, 0).sum() / count


def mask_targets(masks: jax.Array, regions: Regions, corners: jax.Array, window: int) -> jax.Array:
    """The true masks as boxes see them: bilinear at the centres of a window's cells, from half on covered.

    Outside of its own box an object covers nothing. As the features of a box, its window reaches to the beginning of
    the last pixel.

    Args:
        masks: [B, M, G, G / 8] uint8: bits of each object's mask in its own box, the first the highest (`np.packbits`).
        regions: the boxes, N of each image.
        corners: [B, M, 4] true boxes, in pixels.
        window: cells a side.

    Returns:
        [B, N, window, window] bool.
    """
    wide = jnp.promote_types(regions.corners.dtype, jnp.float32)
    chosen = box.rows_of(masks, regions.rows)
    grid = (chosen[..., None] >> jnp.arange(7, -1, -1, dtype=jnp.uint8)) & 1
    grid = grid.reshape(*chosen.shape[:-1], -1).astype(wide)
    own = box.rows_of(corners.astype(wide), regions.rows)
    cells = grid.shape[-1]

    def shares(axis: int) -> jax.Array:
        """[B, N, window, G]: how near each sample is to each cell of the grid, 0 from one cell on."""
        start, end = regions.corners[..., axis].astype(wide), regions.corners[..., 2 + axis].astype(wide) - 1
        step = jnp.maximum(end - start, 1)[..., None] / window
        at = start[..., None] + (jnp.arange(window) + 0.5) * step
        side = jnp.maximum(own[..., 2 + axis] - own[..., axis], jnp.finfo(wide).tiny)[..., None]
        at = (at - own[..., axis, None]) / side * cells - 0.5
        return jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(cells)), 0)

    found = jnp.einsum("bnyg,bngh,bnxh->bnyx", shares(1), grid, shares(0), precision="highest")
    return found >= 0.5


def mask_loss(logits: jax.Array, targets: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of the pixels of boxes that hold something, of their true class's mask; 0 without any.

    Args:
        logits: [B, N, h, w, C].
        targets: [B, N, h, w] bool.
        labels: [B, N] int32, not positive where a box does not count.
    """
    chosen = of_class(logits, labels).astype(jnp.promote_types(logits.dtype, jnp.float32))
    losses = -jax.nn.log_sigmoid(jnp.where(targets, chosen, -chosen)).mean((2, 3))
    positive = labels > 0
    return jnp.where(positive, losses, 0).sum() / jnp.maximum(positive.sum(), 1)


def of_class(masks: jax.Array, labels: jax.Array) -> jax.Array:
    """Of masks [B, N, h, w, C] those of the labels [B, N], [B, N, h, w]; class 0's where a label is negative."""
    chosen = jnp.maximum(labels, 0)[..., None, None, None]
    return jnp.take_along_axis(masks, chosen, axis=-1)[..., 0]


def detect_regions(
    logits: jax.Array,
    codes: jax.Array,
    proposals: jax.Array,
    present: jax.Array,
    sizes: jax.Array,
    selection: Selection,
) -> Detections:
    """What the proposals hold, each class decoded by itself, and of these what no better one of its class covers.

    Args:
        logits: [B, P, C], class 0 the background.
        codes: [B, P, C, 4].
        proposals: [B, P, 4] in pixels.
        present: [B, P], False for rows that are padding.
        sizes: [B, 2] height and width of the images without padding, in pixels.
        selection: `candidates` pairs of box and class are looked at, the best of an image; boxes that overlap more
            than `iou` cover each other.

    Returns:
        Detections with corners in pixels.
    """
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    scores = jax.nn.softmax(logits.astype(wide))[..., 1:]
    scores = jnp.where((scores > selection.score) & present[..., None], scores, 0)
    classes = scores.shape[-1]
    scores = scores.reshape(len(scores), -1)
    scores, pairs = jax.lax.top_k(scores, min(selection.candidates, scores.shape[1]))
    rows, labels = pairs // classes, pairs % classes + 1
    found = codes.reshape(len(codes), -1, 4)
    found = box.rows_of(found, rows * (classes + 1) + labels).astype(wide)
    at = box.to_centres(box.rows_of(proposals.astype(wide), rows))
    corners = clipped(box.decode(found, at, largest=LARGEST), sizes)
    return pick(corners, scores, labels.astype(jnp.int32), selection)


def shares_of_255(logits: jax.Array) -> jax.Array:
    """How sure masks are of each pixel, in 255ths, uint8: a quarter of the memory, and finer than any threshold."""
    return jnp.round(255 * jax.nn.sigmoid(logits.astype(jnp.float32))).astype(jnp.uint8)
