"""Convolutions of groups of channels as sums of shifted products.

k x k products of shifted images say the same as a grouped convolution: element by element where every channel is a
group (depthwise), else a product of matrices for each group. Two reasons not to take lax's own:

- XLA's partitioner gives wrong numbers for it (jaxlib 0.10.2): on a mesh of two axes with the batch split
  over one of them its kernel's gradient, and with channels split over the other its values too.
- XLA:CPU takes 4 to 11 times as long for a depthwise one, and up to 20 times for its gradients (benchmarks/NOTES.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from mlperf_jax.platform import compiled_for

Padding = str | Sequence[tuple[int, int]]


def convolve_groups(
    x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding: Padding, groups: int
) -> jax.Array:
    """Convolves each group of channels of `x` [B, *size, I] with its own kernels; returns [B, *size / stride, O].

    Args:
        x: images or volumes.
        kernel: [*window, I / groups, O] of the same dtype; the first O / groups are the first group's.
        stride: of each dimension between.
        padding: lax's "SAME" or "VALID", or what is added before and after, dimension by dimension.
        groups: into how many parts I and O are cut.
    """
    if compiled_for() == "cpu" and kernel.shape[-2] > 1:
        return _dense(x, kernel, stride, padding, groups)
    window, size = kernel.shape[:-2], x.shape[1:-1]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, stride, padding)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    out = [(n - w) // s + 1 for n, w, s in zip(padded.shape[1:-1], window, stride, strict=True)]
    total: jax.Array | None = None
    for place in itertools.product(*map(range, window)):
        stop = [p + (n - 1) * s + 1 for p, n, s in zip(place, out, stride, strict=True)]
        seen = lax.slice(padded, (0, *place, 0), (x.shape[0], *stop, x.shape[-1]), (1, *stride, 1))
        part = _product(seen, kernel[place], groups)
        total = part if total is None else total + part
    assert total is not None  # a window has a place
    return total


def _dense(
    x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding: Padding, groups: int
) -> jax.Array:
    """`convolve_groups` as a convolution of all channels with a kernel that is zero outside of the groups."""
    *window, inputs, outputs = kernel.shape
    parts = kernel.reshape(*window, 1, inputs, groups, outputs // groups)
    own = jnp.eye(groups, dtype=kernel.dtype)[:, None, :, None]
    whole = (parts * own).reshape(*window, groups * inputs, outputs)
    space = "DHW"[-len(window) :]
    numbers = f"N{space}C", f"{space}IO", f"N{space}C"
    return lax.conv_general_dilated(x, whole, stride, padding, dimension_numbers=numbers)


def _product(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """[..., I] by [I / groups, O], group by group: [..., O]."""
    inputs, outputs = kernel.shape
    if inputs == 1 and outputs == groups:
        return x * kernel[0]
    parts = x.reshape(*x.shape[:-1], groups, inputs)
    product = jnp.einsum("...gi,igo->...go", parts, kernel.reshape(inputs, groups, outputs // groups))
    return product.reshape(*x.shape[:-1], outputs)
