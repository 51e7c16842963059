"""Convolutions of groups of channels, in the form that is fastest where they run (benchmarks/grouped_forms.md).

Three forms say the same: XLA's own; k x k products of shifted images, element by element where every channel is a
group (depthwise), else a product of matrices for each group; and a convolution of all channels whose kernel is zero
outside of the groups. Depthwise ones on a CPU alone have gradients of their own (`models.depthwise`). Of XLA's own:

- Its partitioner (jaxlib 0.10.2) gathers the whole batch on every device where groups have several channels, and gives wrong
  numbers on a mesh of two axes: with the batch split over one of them the kernel's gradient, and with channels split
  over the other the values too. So each device convolves its own rows of the batch by itself (`shard_map`), with whole
  kernels; where heights are split another form is taken.
- XLA:CPU takes 4 to 11 times as long for a depthwise one, and up to 20 times for its gradients (benchmarks/NOTES.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from mlperf_jax.parallel import layout
from mlperf_jax.platform import compiled_for
from models.depthwise import convolve_channels, seen

Padding = str | Sequence[tuple[int, int]]

# Up to so many channels, or in so few groups, zeros cost a TPU's matrix units less than groups do.
_DENSE_DEPTHWISE, _DENSE, _FEW = 128, 256, 4

# With groups of several channels, up to so many of them, a third of the time of shifted products at RetinaNet's mini.
_DENSE_ON_CPU = 128


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
    is_product = set(kernel.shape[:-2]) == {1}
    form = _form(x.shape[-1], kernel.shape[-1], groups, is_product)
    return form(x, kernel, stride, padding, groups)


def _form(inputs: int, outputs: int, groups: int, is_product: bool = False) -> Callable[..., jax.Array]:
    """The fastest of those that are right on the layout in use; `is_product` of a window of one pixel."""
    platform, is_depthwise = compiled_for(), inputs == outputs == groups
    in_use = layout.active()
    is_cut = in_use is not None and any(in_use.choices(size) for size in ("height", "depth"))
    if platform == "tpu":
        most = _DENSE_DEPTHWISE if is_depthwise else _DENSE
        is_small = max(inputs, outputs) <= most or groups <= _FEW
        return dense if is_small or is_cut else grouped
    if platform == "gpu" and not is_depthwise:
        return dense if is_cut else grouped
    if platform == "cpu" and not (is_depthwise or is_product) and max(inputs, outputs) <= _DENSE_ON_CPU:
        return dense
    is_alone = in_use is not None and in_use.mesh.size == 1
    return in_parts if platform == "cpu" and is_depthwise and is_alone and not is_product else shifted


def grouped(
    x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding: Padding, groups: int
) -> jax.Array:
    """`convolve_groups` as XLA has it, on each device's rows of the batch; sizes between may not be split."""

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = _numbers(x.ndim - 2)
        return lax.conv_general_dilated(
            x, kernel, stride, padding, dimension_numbers=numbers, feature_group_count=groups
        )

    return layout.on_own_rows(convolve, x, kernel)


def dense(x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding: Padding, groups: int) -> jax.Array:
    """`convolve_groups` as a convolution of all channels with a kernel that is zero outside of the groups."""
    *window, inputs, outputs = kernel.shape
    parts = kernel.reshape(*window, 1, inputs, groups, outputs // groups)
    own = jnp.eye(groups, dtype=kernel.dtype)[:, None, :, None]
    whole = (parts * own).reshape(*window, groups * inputs, outputs)
    return lax.conv_general_dilated(x, whole, stride, padding, dimension_numbers=_numbers(x.ndim - 2))


def _numbers(dims: int) -> tuple[str, str, str]:
    space = "DHW"[-dims:]
    return f"N{space}C", f"{space}IO", f"N{space}C"


def shifted(
    x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding: Padding, groups: int
) -> jax.Array:
    """`convolve_groups` as a sum of products of shifted images."""
    window, size = kernel.shape[:-2], x.shape[1:-1]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, stride, padding)
    parts = (part for _, part in seen(jnp.pad(x, ((0, 0), *padding, (0, 0))), window, stride))
    inputs, places = kernel.shape[-2], math.prod(window)
    # All places' kernels at once: taken one by one each is a gradient of the whole kernel's size, to be added.
    kernels = lax.split(kernel.reshape(places * inputs, -1), [inputs] * places)
    return functools.reduce(jnp.add, (_product(*both, groups) for both in zip(parts, kernels, strict=True)))


def in_parts(
    x: jax.Array, kernel: jax.Array, stride: Sequence[int], padding: Padding, groups: int
) -> jax.Array:
    """`shifted` where every channel is a group, with gradients in parts of the batch (`models.depthwise`)."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], stride, padding)
    pads = tuple((low, high) for low, high in padding)
    return convolve_channels(x, kernel.squeeze(-2), tuple(stride), pads)


def _product(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """[..., I] by [I / groups, O], group by group: [..., O]."""
    inputs, outputs = kernel.shape
    if inputs == 1 and outputs == groups:
        return x * kernel
    parts = x.reshape(*x.shape[:-1], groups, inputs)
    product = jnp.einsum("...gi,igo->...go", parts, kernel.reshape(inputs, groups, outputs // groups))
    return product.reshape(*x.shape[:-1], outputs)
