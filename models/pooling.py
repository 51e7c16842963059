"""Pooling of images of features."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlperf_jax.platform import compiled_for
from models.layers import Padding

_WINDOW, _STRIDE = (1, 3, 3, 1), (1, 2, 2, 1)


def max_pool(x: jax.Array, padding: Padding) -> jax.Array:
    """3x3/2 max-pool of [B, H, W, C].

    The gradient of a maximum goes to the first of the elements that have it, row by row: XLA's rule, and
    PyTorch's. On CPU the columns of a window are taken first and then its rows, as maxima of shifted slices:
    XLA:CPU selects and scatters one element at a time.
    """
    lowest = np.array(-np.inf, x.dtype)
    pads = lax.padtype_to_pads(x.shape, _WINDOW, _STRIDE, padding) if isinstance(padding, str) else padding
    pads = pads if len(pads) == x.ndim else [(0, 0), *pads, (0, 0)]
    if compiled_for() != "cpu":
        return lax.reduce_window(x, lowest, lax.max, _WINDOW, _STRIDE, pads)
    for axis in (2, 1):
        low, high = pads[axis]
        outputs = (x.shape[axis] + low + high - 3) // 2 + 1
        # Elements at the end that no window reaches are cut off.
        high = 2 * outputs + 1 - x.shape[axis] - low
        x = lax.pad(x, lowest, [(low, high, 0) if n == axis else (0, 0, 0) for n in range(x.ndim)])
        x = _max_of_three(x, axis)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_three(x: jax.Array, axis: int) -> jax.Array:
    """Maxima of elements 2 i, 2 i + 1 and 2 i + 2: 2 n + 1 elements along `axis` become n."""
    first, second, third = _thirds(x, axis)
    return jnp.maximum(jnp.maximum(first, second), third)


def _thirds(x: jax.Array, axis: int) -> list[jax.Array]:
    return [lax.slice_in_dim(x, start, x.shape[axis] - 2 + start, 2, axis) for start in range(3)]


def _forward(x: jax.Array, axis: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    largest = _max_of_three(x, axis)
    return largest, (x, largest)


def _backward(axis: int, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    x, largest = kept
    first, second, _ = _thirds(x, axis)
    is_first = first == largest
    is_second = ~is_first & (second == largest)
    zero = jnp.zeros((), gradient.dtype)

    def placed(here: jax.Array, start: int) -> jax.Array:
        ends = [(start, 2 - start, 1) if n == axis else (0, 0, 0) for n in range(x.ndim)]
        return lax.pad(jnp.where(here, gradient, zero), zero, ends)

    return (placed(is_first, 0) + placed(is_second, 1) + placed(~(is_first | is_second), 2),)


_max_of_three.defvjp(_forward, _backward)
