"""Convolutions of each channel by itself on a CPU, whose gradients are made a few images at a time.

As XLA:CPU (jaxlib 0.10.2) compiles it, the gradient of a sum of shifted images is one loop in which everything that the
gradient above is made of, a batch norm's too, is computed again for each place of the window; and the kernel's gradient
reads as many copies of all images. A loop over parts of the batch keeps both in the cache, and what it is given is
computed once: a step of `mobilenet` mini takes two thirds of the time (benchmarks/NOTES.md).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Pads = Sequence[tuple[int, int]]

_PART_BYTES = 1 << 19  # of images that are looked at together


def shifted(x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding: Pads) -> jax.Array:
    """A sum of products of shifted images.

    Args:
        x: [B, *size, C].
        kernel: [*window, C].
        stride, padding: of each dimension between.

    Returns:
        [B, *size / stride, C].
    """
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    window = kernel.shape[:-1]
    out = [(n - w) // s + 1 for n, w, s in zip(padded.shape[1:-1], window, stride, strict=True)]
    return _sum_of_places(padded, kernel, stride, out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_channels(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, ...], padding: tuple[tuple[int, int], ...]
) -> jax.Array:
    """`shifted`, with gradients in parts of the batch: for one device that holds all of it."""
    return shifted(x, kernel, stride, padding)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, ...], padding: tuple[tuple[int, int], ...]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return shifted(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    kept: tuple[jax.Array, jax.Array],
    above: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    images, aboves = (a.reshape(_parts(x), -1, *a.shape[1:]) for a in (x, above))

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        images, above = part
        _, of_kernel = jax.vjp(lambda kernel: shifted(images, kernel, stride, padding), kernel)
        (found,) = of_kernel(above)
        return total + found, _of_images(above, kernel, images.shape[1:-1], stride, padding)

    total = jnp.zeros(kernel.shape, jnp.promote_types(kernel.dtype, jnp.float32))
    total, of_images = lax.scan(add, total, (images, aboves))
    return of_images.reshape(x.shape), total.astype(kernel.dtype)


convolve_channels.defvjp(_forward, _backward)


def _parts(x: jax.Array) -> int:
    """Into how many equal parts a batch is cut: as few as keep each small."""
    most = max(1, _PART_BYTES * len(x) // max(1, x.size * x.dtype.itemsize))
    return next(n for n in range(1, len(x) + 1) if len(x) % n == 0 and len(x) // n <= most)


def _of_images(
    above: jax.Array, kernel: jax.Array, size: Sequence[int], stride: Sequence[int], padding: Pads
) -> jax.Array:
    """The gradient of images [B, *size, C]: that of the result with zeros between, under the kernel turned around."""
    window = kernel.shape[:-1]
    spread = [(0, 0, 0)]
    for (low, _), n, out, step, wide in zip(padding, size, above.shape[1:-1], stride, window, strict=True):
        spread.append((wide - 1 - low, n + low - ((out - 1) * step + 1), step - 1))
    padded = lax.pad(above, jnp.zeros((), above.dtype), [*spread, (0, 0, 0)])
    turned = kernel[(slice(None, None, -1),) * len(window)]
    return _sum_of_places(padded, turned, (1,) * len(window), size)


def _sum_of_places(
    padded: jax.Array, kernel: jax.Array, stride: Sequence[int], out: Sequence[int]
) -> jax.Array:
    """Of padded images the pixels that each place of the window sees, times what the kernel [*window, C] has there."""
    total: jax.Array | None = None
    for place in itertools.product(*map(range, kernel.shape[:-1])):
        stop = [p + (n - 1) * s + 1 for p, n, s in zip(place, out, stride, strict=True)]
        seen = lax.slice(padded, (0, *place, 0), (len(padded), *stop, padded.shape[-1]), (1, *stride, 1))
        part = seen * kernel[place]
        total = part if total is None else total + part
    assert total is not None  # a window has a place
    return total
