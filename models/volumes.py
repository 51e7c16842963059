"""Convolutions of volumes as convolutions of images.

A window of k x k x k over a volume says the same as one of k x k over images whose channels are those of k
neighbouring slices. XLA:CPU has no fast kernel for three dimensions: forward and backward together take 4 to 35
times as long as this form (benchmarks/NOTES.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from models.grouped import Padding


def convolve_slices(x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding: Padding) -> jax.Array:
    """Convolves volumes `x` [B, D, H, W, I] with `kernel` [d, h, w, I, O]; returns [B, D', H', W', O].

    Args:
        x: volumes.
        kernel: of the same dtype.
        stride: of each dimension between.
        padding: lax's "SAME" or "VALID", or what is added before and after, dimension by dimension.
    """
    depth = kernel.shape[0]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], stride, padding)
    x = jnp.pad(x, ((0, 0), padding[0], *[(0, 0)] * (x.ndim - 2)))
    batch, size, *places, features = x.shape
    count = (size - depth) // stride[0] + 1
    last = (count - 1) * stride[0] + 1
    taps = [lax.slice_in_dim(x, tap, tap + last, stride[0], axis=1) for tap in range(depth)]
    slices = jnp.concatenate(taps, axis=-1).reshape(batch * count, *places, depth * features)
    # [d, h, w, I, O] to [h, w, d I, O]
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], depth * features, -1)
    y = lax.conv_general_dilated(
        slices, flat, tuple(stride[1:]), padding[1:], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(batch, count, *y.shape[1:])
