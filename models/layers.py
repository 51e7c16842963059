"""The layers that the vision models share: convolutions and dense; `models.norms` has normalisation.

Every layer takes its dtypes from a `Policy` and names the meaning of its parameters' axes in the
variable's metadata (`nnx.Param(value, axes=...)`), from which `parallel.layout` places them.
Precision of products is jax's own global setting (`jax_default_matmul_precision`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

from mlperf_jax.platform import compiled_for
from mlperf_jax.precision import Policy
from models.grouped import convolve_groups
from models.products import product
from models.volumes import convolve_slices

Padding = str | Sequence[tuple[int, int]]
"""lax's "SAME" or "VALID", or what is added before and after, dimension by dimension."""


def convolve(x: jax.Array, kernel: jax.Array, stride: int | Sequence[int], padding: Padding) -> jax.Array:
    """Convolves `x` [B, ..., I] with `kernel` [..., I, O]; returns [B, ..., O].

    The dimensions between are height and width, or as many as the kernel has.
    """
    dims = kernel.ndim - 2
    if dims == 3 and compiled_for() == "cpu":
        return convolve_slices(x, kernel, _each(stride, dims), padding)
    return lax.conv_general_dilated(
        x,
        kernel,
        _each(stride, dims),
        padding,
        dimension_numbers=_numbers(dims),
    )


def _numbers(dims: int) -> tuple[str, str, str]:
    """What the dimensions of input, kernel and output are: ("NHWC", "HWIO", "NHWC") for two."""
    space = "DHW"[-dims:]
    return f"N{space}C", f"{space}IO", f"N{space}C"


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


class _Convolution(nnx.Module):
    """The parameters of a convolution: a kernel [*size, I, O], where asked a bias [O] that starts as zero."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: tuple[int, ...],
        *,
        bias: bool,
        axis_in: str | None,
        kernel_init: initializers.Initializer | None,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        # Drawn with the window as one dimension, the same numbers take XLA:CPU a quarter of the time to compile.
        shape = (math.prod(size), features_in, features_out)
        drawn = (kernel_init or initializers.he_normal())(rngs.params(), shape, policy.param_dtype)
        kernel = drawn.reshape(*size, features_in, features_out)
        self.kernel = nnx.Param(kernel, axes=(*(None for _ in size), axis_in, "conv_out"))
        self.has_bias = bias
        if bias:
            self.bias = nnx.Param(jnp.zeros(features_out, policy.param_dtype), axes=("conv_out",))
        self.dtype = policy.compute_dtype

    def _with_bias(self, y: jax.Array) -> jax.Array:
        return y + self.bias[...].astype(self.dtype) if self.has_bias else y


class Conv(_Convolution):
    """A convolution over two dimensions, or as many as its size names.

    Its kernel [*size, I / groups, O] starts by default as He et al. (arXiv:1502.01852) propose: truncated
    normal, variance 2 / fan-in.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int | tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: Padding = "SAME",
        groups: int = 1,
        bias: bool = False,
        kernel_init: initializers.Initializer | None = None,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer.

        Args:
            features_in: I.
            features_out: O.
            size: of the kernel; one number for height and width alike.
            stride: one number for all dimensions alike.
            padding: what is added around the input.
            groups: into how many parts the features are cut, each part of O seeing its part of I only; I for
                a depthwise convolution.
            bias: whether there is one.
            kernel_init: draws the kernel.
            policy: dtypes.
            rngs: holds the stream "params".

        Raises:
            ValueError: the groups do not divide the features.
        """
        if features_in % groups or features_out % groups:
            raise ValueError(f"{groups} groups do not divide {features_in} and {features_out} features")
        super().__init__(
            features_in // groups,
            features_out,
            _each(size, 2),
            bias=bias,
            # A part of every group's input would be no part of the input.
            axis_in="conv_in" if groups == 1 else None,
            kernel_init=kernel_init,
            policy=policy,
            rngs=rngs,
        )
        self.stride = stride
        self.padding = padding
        self.groups = groups

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, ..., I] to [B, ..., O] in the compute dtype."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        dims = kernel.ndim - 2
        padded = not isinstance(self.padding, str) and any(map(any, self.padding))
        strides = _each(self.stride, dims)
        # Fusing strided rows into a product aborts XLA's GPU compiler (jax 0.10.2), and so does fusing a norm into
        # one of odd channels, as ShuffleNet's 58.
        plain = self.groups == 1 and not padded and (set(strides) == {1} or compiled_for() == "cpu")
        plain = plain and (compiled_for() != "gpu" or x.shape[-1] % 16 == 0)
        if plain and set(kernel.shape[:dims]) == {1}:
            # A product of two matrices says the same, and XLA:CPU runs it and its gradients faster.
            x = lax.slice(x, (0,) * x.ndim, x.shape, (1, *strides, 1))
            y = product(x.reshape(-1, x.shape[-1]), kernel[(0,) * dims]).reshape(*x.shape[:-1], -1)
        elif self.groups > 1:
            y = convolve_groups(x, kernel, strides, self.padding, self.groups)
        else:
            y = convolve(x, kernel, self.stride, self.padding)
        return self._with_bias(y)


class ConvTranspose(_Convolution):
    """The transpose of a convolution as a linear map, as PyTorch has it: for larger outputs than inputs.

    An input element adds its product with the kernel [*size, I, O] to the output; neighbours' lie `stride`
    apart. Of a dimension n becomes (n - 1) * stride - 2 * padding + size + output_padding. The kernel starts
    by default as `Conv`'s.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int | tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        bias: bool = False,
        kernel_init: initializers.Initializer | None = None,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer.

        Args:
            features_in: I.
            features_out: O.
            size: of the kernel; one number for height and width alike. All others: for all dimensions alike.
            stride: from the place of one input element to the next.
            padding: how much is cut off at both ends of the output.
            output_padding: how much less is cut off at the far end.
            bias: whether there is one.
            kernel_init: draws the kernel.
            policy: dtypes.
            rngs: holds the stream "params".
        """
        super().__init__(
            features_in,
            features_out,
            _each(size, 2),
            bias=bias,
            axis_in="conv_in",
            kernel_init=kernel_init,
            policy=policy,
            rngs=rngs,
        )
        self.stride = stride
        self.padding = padding
        self.output_padding = output_padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, ..., I] to [B, ..., O] in the compute dtype."""
        kernel = self.kernel[...].astype(self.dtype)
        size = kernel.shape[:-2]
        dims = len(size)
        if _each(self.stride, dims) == size and not any(
            _each(self.padding, dims) + _each(self.output_padding, dims)
        ):
            return self._with_bias(_spread(x.astype(self.dtype), kernel))
        ends = zip(size, _each(self.padding, dims), _each(self.output_padding, dims), strict=True)
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            lax.rev(kernel, range(dims)),
            (1,) * dims,
            [(k - 1 - p, k - 1 - p + more) for k, p, more in ends],
            lhs_dilation=_each(self.stride, dims),
            dimension_numbers=_numbers(dims),
        )
        return self._with_bias(y)


def _spread(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A transposed convolution whose windows lie side by side: one product, whose parts are put in their places.

    Args:
        x: [B, *places, I].
        kernel: [*size, I, O] of the same dtype.

    Returns:
        [B, *(places * size), O].
    """
    *size, features_in, features_out = kernel.shape
    dims = len(size)
    flat = jnp.moveaxis(kernel, dims, 0).reshape(features_in, -1)
    parts = product(x, flat).reshape(*x.shape[:-1], *size, features_out)
    # [B, d, h, w, 2, 2, 2, O] -> [B, d, 2, h, 2, w, 2, O]
    order = [0, *(axis for d in range(dims) for axis in (1 + d, 1 + dims + d)), 1 + 2 * dims]
    places = (n * s for n, s in zip(x.shape[1:-1], size, strict=True))
    return parts.transpose(order).reshape(x.shape[0], *places, features_out)


class Dense(nnx.Module):
    """`x @ kernel + bias`; the kernel [I, O] starts as N(0, stddev) or as told, the bias [O] as zero."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        axes: tuple[str | None, str | None],
        stddev: float = 0.01,
        kernel_init: initializers.Initializer | None = None,
        dtype: DTypeLike | None = None,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer.

        Args:
            features_in: I.
            features_out: O.
            axes: what the kernel's two axes mean to the layout.
            stddev: of the kernel's first values.
            kernel_init: draws the kernel in the normal distribution's place.
            dtype: of the product, where it is not to be the policy's compute dtype.
            policy: dtypes.
            rngs: holds the stream "params".
        """
        init = kernel_init or initializers.normal(stddev)
        kernel = init(rngs.params(), (features_in, features_out), policy.param_dtype)
        self.kernel = nnx.Param(kernel, axes=axes)
        self.bias = nnx.Param(jnp.zeros(features_out, policy.param_dtype), axes=axes[1:])
        self.dtype = jnp.dtype(dtype or policy.compute_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., I] to [..., O]."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return product(x.astype(self.dtype), kernel) + bias
