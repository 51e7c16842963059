"""What boxes hold, looked up in the levels of a pyramid (He et al., arXiv:1703.06870, section 3).

Source of every choice: mlcommons/training, retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark, csrc/cuda/
ROIAlign_cuda.cu and modeling/poolers.py: cells are not shifted by half of one, and a box reaches to the beginning
of its last pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.detection import boxes as box

SAMPLES = 2  # a side of every cell of the window
FEW_CELLS = 1024  # of all levels of an image, up to which products are faster than reading cells (a factor of 10 on a CPU)
_USUAL_SIZE, _USUAL_STRIDE = 224, 16  # of a box that the level of this stride is for
_MARGIN = 1e-6  # by which a box may be too small for its level


def roi_align(
    levels: Sequence[jax.Array], strides: Sequence[int], corners: jax.Array, window: int
) -> jax.Array:
    """Means of bilinear samples in each cell of a window laid over each box, from the level for its size.

    Large levels are joined and read at once, with 16 cells for each of the window: four samples, each between
    four cells. No level is read for boxes of another, nothing depends on how many boxes a level has, and the
    gradient is one sum into the joined levels. Where an image has few cells, all of them are weighted, along one
    axis after the other: two products of matrices for each level.

    Args:
        levels: [B, h, w, C], the largest first.
        strides: pixels from cell to cell of every level.
        corners: [B, R, 4] in pixels.
        window: cells a side.

    Returns:
        [B, R, window, window, C] in the levels' dtype. Boxes have no gradient.
    """
    wide = jnp.promote_types(levels[0].dtype, jnp.float32)
    corners = jax.lax.stop_gradient(corners).astype(wide)
    few = sum(x.shape[1] * x.shape[2] for x in levels) <= FEW_CELLS
    return (_by_products if few else _by_reading)(levels, strides, corners, window)


def _by_reading(
    levels: Sequence[jax.Array], strides: Sequence[int], corners: jax.Array, window: int
) -> jax.Array:
    wide = corners.dtype
    level = level_of(corners, strides)
    heights, widths = (np.array([x.shape[axis] for x in levels], np.int32) for axis in (1, 2))
    starts = np.cumsum([0, *(heights * widths)[:-1]], dtype=np.int32)
    stride = jnp.asarray(strides, wide)[level]
    ends = corners[..., 2:] - 1
    y, y_share = _cells(corners[..., 1] / stride, ends[..., 1] / stride, jnp.asarray(heights)[level], window)
    x, x_share = _cells(corners[..., 0] / stride, ends[..., 0] / stride, jnp.asarray(widths)[level], window)
    # [B, R, window, 1, 4, 1] with [B, R, 1, window, 1, 4].
    y, y_share = (part[..., :, None, :, None] for part in (y, y_share))
    x, x_share = (part[..., None, :, None, :] for part in (x, x_share))
    apart = (...,) + (None,) * 4
    places = jnp.asarray(starts)[level][apart] + y * jnp.asarray(widths)[level][apart] + x
    shares = (y_share * x_share).astype(levels[0].dtype)
    flat = jnp.concatenate([part.reshape(len(part), -1, part.shape[-1]) for part in levels], axis=1)

    def read(cells: jax.Array, at: jax.Array) -> jax.Array:
        return cells.at[at].get(mode="promise_in_bounds")

    found = jax.vmap(read)(flat, places.reshape(*places.shape[:4], -1))
    shares = shares.reshape(*shares.shape[:4], -1)
    return jnp.sum(found * shares[..., None], axis=-2, dtype=wide).astype(levels[0].dtype)


def _by_products(
    levels: Sequence[jax.Array], strides: Sequence[int], corners: jax.Array, window: int
) -> jax.Array:
    dtype, wide = levels[0].dtype, corners.dtype
    chosen = level_of(corners, strides)
    total = jnp.zeros((), wide)
    for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):

        def shares(axis: int, count: int, stride: int = stride) -> jax.Array:
            """[B, R, window, count]: how much of each of the level's cells is taken along an axis."""
            start, end = corners[..., axis] / stride, (corners[..., 2 + axis] - 1) / stride
            at, inside = _samples(start, end, jnp.full(start.shape, count), window)
            near = jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(count)), 0)
            return jnp.sum(near * inside[..., None], axis=-2) / SAMPLES

        y = shares(1, level.shape[1]) * (chosen == i)[..., None, None]
        x = shares(0, level.shape[2])
        rows = jnp.einsum("brph,bhwc->brpwc", y.astype(dtype), level, preferred_element_type=wide)
        total += jnp.einsum("brqw,brpwc->brpqc", x, rows)
    return total.astype(dtype)


def level_of(corners: jax.Array, strides: Sequence[int]) -> jax.Array:
    """The level for each box [..., 4] in pixels, int32 from 0: twice as large a box is for the next one."""
    size = jnp.sqrt(box.area(corners))
    above = jnp.floor(jnp.log2(size / _USUAL_SIZE + _MARGIN))
    usual = np.log2(_USUAL_STRIDE / strides[0])
    return jnp.clip(above + usual, 0, len(strides) - 1).astype(jnp.int32)


def _cells(start: jax.Array, end: jax.Array, count: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """Which cells along one axis the samples of a window lie between, and how much of each is taken.

    Args:
        start, end: [B, R] of boxes, in cells.
        count: [B, R] int32, of cells that there are.
        window: cells of the window.

    Returns:
        [B, R, window, 2 SAMPLES] int32 and the shares, which add up to 1 where no sample lies outside.
    """
    at, inside = _samples(start, end, count, window)
    last = count[..., None, None] - 1
    low = jnp.floor(at).astype(jnp.int32)
    high = jnp.minimum(low + 1, last)
    beyond = at - low
    share = jnp.stack([1 - beyond, beyond], -1) * inside[..., None] / SAMPLES
    cells = jnp.stack([low, high], -1)
    return cells.reshape(*cells.shape[:3], -1), share.reshape(*share.shape[:3], -1)


def _samples(start: jax.Array, end: jax.Array, count: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """Where along one axis a window is sampled, and whether there is something.

    Args:
        start, end, count, window: as `_cells` takes them.

    Returns:
        [B, R, window, SAMPLES] in cells, drawn in to the first or the last one, and bool.
    """
    step = jnp.maximum(end - start, 1)[..., None, None] / window
    within = (jnp.arange(SAMPLES) + 0.5) / SAMPLES
    at = start[..., None, None] + (jnp.arange(window)[:, None] + within.astype(start.dtype)) * step
    last = count[..., None, None] - 1
    inside = (at >= -1) & (at <= last + 1)
    return jnp.clip(at, 0, last.astype(at.dtype)), inside
