"""Convolutions of each channel by itself on a CPU, whose gradients are made a few images at a time.

As XLA:CPU (jaxlib 0.10.2) compiles it, the gradient of a sum of shifted images is one loop in which everything that the
gradient above is made of, a batch norm's too, is computed again for each place of the window; and the kernel's gradient
reads as many copies of all images. A loop over parts of the batch keeps both in the cache, and what it is given is
computed once: a step of `mobilenet` mini takes two thirds of the time (benchmarks/NOTES.md).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

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
    parts = seen(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel.shape[:-1], stride)
    return _sum(part * kernel[place] for place, part in parts)


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
        found = _of_kernel(images, above, kernel.shape[:-1], stride, padding)
        return total + found, _of_images(above, kernel, images.shape[1:-1], stride, padding)

    total = jnp.zeros(kernel.shape, jnp.promote_types(kernel.dtype, jnp.float32))
    total, of_images = lax.scan(add, total, (images, aboves))
    return of_images.reshape(x.shape), total.astype(kernel.dtype)


convolve_channels.defvjp(_forward, _backward)


def _parts(x: jax.Array) -> int:
    """Into how many equal parts a batch is cut: as few as keep each small."""
    most = max(1, _PART_BYTES * len(x) // max(1, x.size * x.dtype.itemsize))
    return next(n for n in range(1, len(x) + 1) if len(x) % n == 0 and len(x) // n <= most)


def _of_kernel(
    images: jax.Array, above: jax.Array, window: Sequence[int], stride: Sequence[int], padding: Pads
) -> jax.Array:
    """The gradient of a kernel [*window, C], in at least float32: for each place the sum of what it saw times what came of it.

    A product with ones adds up: a tenth of the step less than a sum.
    """
    wide = jnp.promote_types(images.dtype, jnp.float32)
    ones = jnp.ones((1, above.size // above.shape[-1]), images.dtype)
    parts = seen(jnp.pad(images, ((0, 0), *padding, (0, 0))), window, stride)
    sums = [
        jnp.matmul(ones, (part * above).reshape(ones.size, -1), preferred_element_type=wide)
        for _, part in parts
    ]
    return jnp.concatenate(sums).reshape(*window, -1)


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
    return _sum(part * turned[place] for place, part in seen(padded, window, (1,) * len(window)))


def seen(
    padded: jax.Array, window: Sequence[int], stride: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """Each place of a window, and the pixels of images [B, *size, C] with margins that it sees, [B, *out, C]."""
    sizes = padded.shape[1:-1]
    out = [(n - w) // s + 1 for n, w, s in zip(sizes, window, stride, strict=True)]
    for place in itertools.product(*map(range, window)):
        stop = [p + (n - 1) * s + 1 for p, n, s in zip(place, out, stride, strict=True)]
        yield (
            place,
            lax.slice(padded, (0, *place, 0), (len(padded), *stop, padded.shape[-1]), (1, *stride, 1)),
        )


def _sum(parts: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, parts)
