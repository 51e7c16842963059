"""Convolutions of single channels as sums of shifted products.

A depthwise convolution has no sum over channels, so that it is no product of matrices: k x k multiply-adds of shifted
images say the same, and XLA:CPU makes one loop of them. Its own grouped convolution takes 4 to 11 times as long there,
and its gradients up to 20 times (benchmarks/NOTES.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = str | Sequence[tuple[int, int]]


def shifted_products(x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding: Padding) -> jax.Array:
    """Convolves each channel of `x` [B, *size, C] with its own kernel [*window, 1, C]; returns [B, *size / stride, C].

    Args:
        x: images or volumes.
        kernel: of the same dtype.
        stride: of each dimension between.
        padding: lax's "SAME" or "VALID", or what is added before and after, dimension by dimension.
    """
    window, size = kernel.shape[:-2], x.shape[1:-1]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, stride, padding)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    out = [(n - w) // s + 1 for n, w, s in zip(padded.shape[1:-1], window, stride, strict=True)]
    total: jax.Array | None = None
    for place in itertools.product(*map(range, window)):
        stop = [p + (n - 1) * s + 1 for p, n, s in zip(place, out, stride, strict=True)]
        seen = lax.slice(
            padded, (0, *place, 0), (x.shape[0], *stop, x.shape[-1]), (1, *stride, 1)
        )
        part = seen * kernel[(*place, 0)]
        total = part if total is None else total + part
    assert total is not None
    return total
