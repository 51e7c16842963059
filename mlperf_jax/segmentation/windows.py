"""Whole volumes through a network that sees windows of one size, on the device.

Windows overlap, and where they do the network's logits are weighed by a Gaussian around each window's middle. How many
windows a volume has is a number in the program, not a shape of it: volumes of many sizes share an array's shape and a
program, and padding costs memory, but no network's work. Source: mlcommons/inference, vision/medical_imaging/
3d-unet-kits19/inference_utils.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlperf_jax.parallel.layout import constrain

_DEVIATION = 0.125  # of a window's side


def gaussian(window: Sequence[int]) -> np.ndarray:
    """The weights of a window's voxels [D, H, W], float64.

    The cube root of the product over three axes, as the reference has it: flatter than the Gaussian itself.
    """
    sides = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (_DEVIATION * n)) ** 2) for n in window]
    product = np.cbrt(np.einsum("i,j,k->ijk", *sides))
    return product / product.max()


def segment(
    network: Callable[[jax.Array], jax.Array],
    volumes: jax.Array,
    sizes: jax.Array,
    *,
    window: Sequence[int],
    stride: Sequence[int],
    num_classes: int,
) -> jax.Array:
    """The class of every voxel.

    Weighted logits are added up, and not divided by the sum of weights: that is one number for all classes of a voxel.

    Args:
        network: [B, *window, C] to logits [B, *window, K].
        volumes: [B, D, H, W, C].
        sizes: [B, 3] int32, the part of each that is covered, from the first voxel: windows and whole strides; 0 for
            none of it.
        window: its shape.
        stride: from one window to the next, axis by axis.
        num_classes: K.

    Returns:
        [B, D, H, W] uint8, 0 where no window was.
    """
    counts = jnp.maximum((sizes - jnp.array(window)) // jnp.array(stride) + 1, 0)  # [B, 3]
    number = counts.prod(-1)  # [B]
    weights = jnp.asarray(gaussian(window), jnp.promote_types(volumes.dtype, jnp.float32))[..., None]

    def add(index: jax.Array, sums: jax.Array) -> jax.Array:
        _, rows, columns = jnp.maximum(counts, 1).T
        place = jnp.stack([index // (rows * columns), index // columns % rows, index % columns], -1)
        place = jnp.where((index < number)[:, None], place * jnp.array(stride), 0)  # [B, 3]
        seen = jax.vmap(lambda v, p: lax.dynamic_slice(v, (*p, 0), (*window, v.shape[-1])))(volumes, place)
        logits = network(constrain(seen, "batch", "depth", None, None, None)) * weights
        logits = jnp.where((index < number)[:, None, None, None, None], logits, 0).astype(sums.dtype)

        def added(total: jax.Array, new: jax.Array, p: jax.Array) -> jax.Array:
            there = lax.dynamic_slice(total, (*p, 0), new.shape)
            return lax.dynamic_update_slice(total, there + new, (*p, 0))

        return lay(jax.vmap(added)(sums, logits, place))

    def lay(sums: jax.Array) -> jax.Array:
        return constrain(sums, "batch", None, None, None, None)

    sums = lay(jnp.zeros((*volumes.shape[:-1], num_classes), weights.dtype))
    return lax.fori_loop(0, number.max(), add, sums).argmax(-1).astype(jnp.uint8)
