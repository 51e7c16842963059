"""Where in a box each keypoint is: as one cell of a grid over it, to learn, and as a place in the image, when found.

He et al., arXiv:1703.06870, section 5, and its authors' code for what is left open (facebookresearch/Detectron,
detectron/utils/keypoints.py and detectron/roi_data/keypoint_rcnn.py): a keypoint's cell is the only right one of its map.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.regions import Regions
from mlperf_jax.platform import compiled_for


def enlarged(maps: jax.Array) -> jax.Array:
    """Maps [..., h, w, K] with twice the height and width, bilinear, in the same dtype.

    Pixels are seen at their middles: a new one is three quarters of the old one that it lies in and a quarter of the nearer
    neighbour. On GPUs sums of shifted maps say so, as XLA's compiler (jaxlib 0.10.2) finds no tiles there for the products of
    `jax.image.resize` in bfloat16; elsewhere those products, with which Mask R-CNN2Go on v5e is planned at 21 ms a step for 27.
    """
    if compiled_for() == "gpu":
        return _doubled(_doubled(maps, maps.ndim - 3), maps.ndim - 2)
    *rest, height, width, count = maps.shape
    return jax.image.resize(maps, (*rest, 2 * height, 2 * width, count), "bilinear")


def _doubled(maps: jax.Array, axis: int) -> jax.Array:
    size = maps.shape[axis]

    def part(start: int, stop: int) -> jax.Array:
        return jax.lax.slice_in_dim(maps, start, stop, axis=axis)

    before = jnp.concatenate([part(0, 1), part(0, size - 1)], axis)
    after = jnp.concatenate([part(1, size), part(size - 1, size)], axis)
    both = jnp.stack([0.75 * maps + 0.25 * before, 0.75 * maps + 0.25 * after], axis + 1)
    return both.reshape(*maps.shape[:axis], 2 * size, *maps.shape[axis + 1 :])


def keypoint_targets(points: jax.Array, regions: Regions, cells: int) -> tuple[jax.Array, jax.Array]:
    """Which cell of a box each keypoint of its object is in, row by row.

    Args:
        points: [B, M, K, 3] keypoints of the true boxes: x and y in pixels, and a flag, 0 where it is not labelled.
        regions: the boxes, N of each image.
        cells: a side of the grid that is laid over each box.

    Returns:
        [B, N, K] int32 from 0 to cells**2 - 1, and [B, N, K] bool, whether it counts: the box holds something, and
        the keypoint is labelled and in the box. A keypoint on the right or lower edge is in the last cell.
    """
    wide = jnp.promote_types(regions.corners.dtype, jnp.float32)
    own = box.rows_of(points, regions.rows).astype(wide)
    first, last = regions.corners[..., None, :2].astype(wide), regions.corners[..., None, 2:].astype(wide)
    sides = jnp.maximum(last - first, jnp.finfo(wide).tiny)
    at = jnp.floor((own[..., :2] - first) / sides * cells)
    at = jnp.where(own[..., :2] == last, cells - 1, at)
    inside = ((at >= 0) & (at < cells)).all(-1)
    counts = inside & (own[..., 2] > 0) & (regions.labels > 0)[..., None]
    at = jnp.where(counts[..., None], at, 0).astype(jnp.int32)
    return at[..., 1] * cells + at[..., 0], counts


def keypoint_loss(maps: jax.Array, targets: jax.Array, counts: jax.Array) -> jax.Array:
    """The mean over the batch's keypoints of a softmax cross-entropy over cells, in float32 or more; 0 without any.

    Args:
        maps: [B, N, h, w, K] logits.
        targets: [B, N, K] int32, see `keypoint_targets`.
        counts: [B, N, K] bool.
    """
    flat = maps.reshape(*maps.shape[:2], -1, maps.shape[-1])
    flat = flat.astype(jnp.promote_types(maps.dtype, jnp.float32))
    chosen = jnp.take_along_axis(flat, targets[:, :, None], axis=2)[:, :, 0]
    entropy = jax.nn.logsumexp(flat, axis=2) - chosen
    return jnp.where(counts, entropy, 0).sum() / jnp.maximum(counts.sum(), 1)


def find_keypoints(maps: jax.Array, corners: jax.Array) -> jax.Array:
    """The middle of each map's largest cell, of equal ones the first.

    Args:
        maps: [B, N, h, w, K] logits.
        corners: [B, N, 4] of the boxes over which they lie.

    Returns:
        [B, N, K, 2] x and y in the corners' unit, float32 or more.
    """
    wide = jnp.promote_types(corners.dtype, jnp.float32)
    height, width = maps.shape[2:4]
    cell = maps.reshape(*maps.shape[:2], -1, maps.shape[-1]).argmax(2)
    share = jnp.stack([(cell % width + 0.5) / width, (cell // width + 0.5) / height], axis=-1).astype(wide)
    first, last = corners[..., None, :2].astype(wide), corners[..., None, 2:].astype(wide)
    return first + share * (last - first)
