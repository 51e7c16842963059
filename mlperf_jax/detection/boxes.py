"""Boxes in two forms, their overlap, and the code in which a network predicts them.

"Corners" are (left, top, right, bottom), "centres" (x, y, width, height) of the centre; both as shares
of the image, or in pixels. Codes are offsets from an anchor, of the centre in sizes of the anchor and of the
logarithm of the size, divided by variances: those of the SSD paper's own implementation, or none.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)

Variances = tuple[float, float]
"""Of a box's centre and of the logarithm of its size."""

SSD_VARIANCES = (0.1, 0.2)


def to_corners(centres: Array) -> Array:
    """[..., 4] (x, y, width, height) to [..., 4] (left, top, right, bottom).

    NumPy's arrays stay such: what is a constant of a program is computed before it is compiled. XLA would evaluate it
    at every compilation, for seconds where anchors are many.
    """
    xp = np if isinstance(centres, np.ndarray) else jnp
    middle, half = centres[..., :2], centres[..., 2:] / 2
    return xp.concatenate([middle - half, middle + half], axis=-1)


def to_centres(corners: jax.Array) -> jax.Array:
    """[..., 4] (left, top, right, bottom) to [..., 4] (x, y, width, height)."""
    first, last = corners[..., :2], corners[..., 2:]
    return jnp.concatenate([(first + last) / 2, last - first], axis=-1)


def rows_of(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Of x [B, N, ...] the rows [B, K] of each image, [B, K, ...].

    They must be there, as places that come of a sort or a maximum are: nothing looks. Looking would be a fifth of a
    detector's program.
    """
    rows = rows.reshape(*rows.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, rows, axis=1, mode="promise_in_bounds")


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of every pair.

    Args:
        a: [..., N, 4] corners.
        b: [..., M, 4] corners.

    Returns:
        [..., N, M]; 0 where both boxes have no area.
    """
    a, b = a[..., :, None, :], b[..., None, :, :]
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    sides = jnp.maximum(sides, 0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(a) + area(b) - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def area(corners: jax.Array) -> jax.Array:
    """[..., 4] to [...]; 0 of a box whose corners are the wrong way round."""
    sides = jnp.maximum(corners[..., 2:] - corners[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def encode(corners: jax.Array, anchors: jax.Array, variances: Variances = SSD_VARIANCES) -> jax.Array:
    """What a network should predict for boxes [..., A, 4] (corners) at anchors [A, 4] (centres).

    The boxes must have an area.
    """
    boxes = to_centres(corners)
    middle = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:] / variances[0]
    size = jnp.log(boxes[..., 2:] / anchors[..., 2:]) / variances[1]
    return jnp.concatenate([middle, size], axis=-1)


def decode(
    codes: jax.Array, anchors: jax.Array, variances: Variances = SSD_VARIANCES, largest: float = jnp.inf
) -> jax.Array:
    """The boxes [..., A, 4] (corners) that codes [..., A, 4] mean at anchors [A, 4] (centres).

    Args:
        codes, anchors: see above.
        variances: that the codes are divided by.
        largest: in sizes of its anchor; what is larger by its code has this size.
    """
    middle = codes[..., :2] * variances[0] * anchors[..., 2:] + anchors[..., :2]
    times = jnp.minimum(codes[..., 2:] * variances[1], jnp.log(largest))
    return to_corners(jnp.concatenate([middle, jnp.exp(times) * anchors[..., 2:]], axis=-1))
