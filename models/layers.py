"""The layers that the vision models share: convolution, dense and batch normalisation.

Every layer takes its dtypes from a `Policy` and names the meaning of its parameters' axes in the
variable's metadata (`nnx.Param(value, axes=...)`), from which `parallel.layout` places them.
Precision of products is jax's own global setting (`jax_default_matmul_precision`).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

from mlperf_jax.precision import Policy

Padding = str | Sequence[tuple[int, int]]


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolves `x` [B, H, W, I] with `kernel` [h, w, I, O]; returns [B, H', W', O]."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class Conv(nnx.Module):
    """A two-dimensional convolution, where asked with a bias [O] that starts as zero.

    Its kernel [size, size, I, O] starts by default as He et al. (arXiv:1502.01852) propose: truncated
    normal, variance 2 / fan-in.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        bias: bool = False,
        kernel_init: initializers.Initializer | None = None,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, features_in, features_out)
        kernel = (kernel_init or initializers.he_normal())(rngs.params(), shape, policy.param_dtype)
        self.kernel = nnx.Param(kernel, axes=(None, None, "conv_in", "conv_out"))
        self.has_bias = bias
        if bias:
            self.bias = nnx.Param(jnp.zeros(features_out, policy.param_dtype), axes=("conv_out",))
        self.stride = stride
        self.padding = padding
        self.dtype = policy.compute_dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, I] to [B, H', W', O] in the compute dtype."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if kernel.shape[:2] == (1, 1) and self.stride == 1:
            # A product of two matrices says the same, and XLA:CPU runs it and its gradients faster. Not with
            # a stride: fusing the strided rows into the product aborts XLA's GPU compiler (jax 0.10.2).
            y = jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:-1], -1)
        else:
            y = convolve(x, kernel, self.stride, self.padding)
        return y + self.bias[...].astype(self.dtype) if self.has_bias else y


class Dense(nnx.Module):
    """`x @ kernel + bias`; the kernel [I, O] starts as N(0, stddev), the bias [O] as zero."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        axes: tuple[str | None, str | None],
        stddev: float,
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
            dtype: of the product, where it is not to be the policy's compute dtype.
            policy: dtypes.
            rngs: holds the stream "params".
        """
        kernel = initializers.normal(stddev)(rngs.params(), (features_in, features_out), policy.param_dtype)
        self.kernel = nnx.Param(kernel, axes=axes)
        self.bias = nnx.Param(jnp.zeros(features_out, policy.param_dtype), axes=axes[1:])
        self.dtype = jnp.dtype(dtype or policy.compute_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., I] to [..., O]."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return jnp.dot(x.astype(self.dtype), kernel) + bias


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy, arXiv:1502.03167) over groups of `span` samples.

    Under `jit` with a sharded batch, statistics of the whole batch cost an all-reduce per layer.
    With a span (MLPerf's `model_bn_span`) each run of `span` consecutive samples of the global batch
    has its own; where a device holds whole groups, nothing is sent. Running statistics are the mean
    over groups; like the reference's, the running variance is the unbiased one.

    Statistics are at least float32. They come from one pass over the activations: sums of `x - c` and
    `(x - c)**2`, where c is the running mean. Without c the difference of two large numbers would
    lose the variance of channels whose mean is far from zero; c is constant, so gradients are exact.
    """

    def __init__(
        self,
        features: int,
        *,
        span: int = 0,
        scale: float = 1.0,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        affine: bool = True,
        policy: Policy,
    ) -> None:
        """Builds the layer.

        Args:
            features: C.
            span: samples per group; 0 for the whole global batch.
            scale: first value of the scale, gamma; the bias, beta, starts at 0.
            momentum: how much of the running statistics stays at each training step.
            epsilon: added to the variance.
            affine: whether there are gamma and beta to learn; else they are 1 and 0.
            policy: dtypes.
        """
        self.dtype = jnp.promote_types(policy.compute_dtype, jnp.float32)
        stat_dtype = jnp.promote_types(policy.param_dtype, jnp.float32)
        axes = ("channels",)
        self.affine = affine
        if affine:
            self.scale = nnx.Param(jnp.full(features, scale, policy.param_dtype), axes=axes)
            self.bias = nnx.Param(jnp.zeros(features, policy.param_dtype), axes=axes)
        self.mean = nnx.BatchStat(jnp.zeros(features, stat_dtype), axes=axes)
        self.var = nnx.BatchStat(jnp.ones(features, stat_dtype), axes=axes)
        self.span = span
        self.momentum = momentum
        self.epsilon = epsilon

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x` [B, H, W, C], and in training updates the running statistics.

        Raises:
            ValueError: the span does not divide the batch.
        """
        if train:
            mean, var = self._batch_statistics(x)
        else:
            mean, var = self.mean[...].astype(self.dtype), self.var[...].astype(self.dtype)
        gain: jax.Array = lax.rsqrt(var + self.epsilon)
        shift: jax.Array | int = 0
        if self.affine:
            gain = self.scale[...].astype(self.dtype) * gain
            shift = self.bias[...].astype(self.dtype)
        shift -= mean * gain
        # The multiply-add is in self.dtype inside one fused loop: bf16 would round x's mean away.
        return (x.astype(self.dtype) * gain + shift).astype(x.dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns mean and biased variance, [C], or [B, 1, 1, C] with a span."""
        batch, height, width, channels = x.shape
        if self.span and batch % self.span:
            raise ValueError(f"bn_span {self.span} does not divide the batch of {batch}")
        centre = self.mean[...].astype(self.dtype)
        centred = x.astype(self.dtype) - centre
        if self.span in (0, batch):
            samples = batch
            first = centred.mean((0, 1, 2))
            second = jnp.square(centred).mean((0, 1, 2))
        else:
            samples = self.span
            first = self._group_mean(centred.mean((1, 2)))
            second = self._group_mean(jnp.square(centred).mean((1, 2)))
        mean, var = first + centre, jnp.maximum(second - jnp.square(first), 0)
        count = samples * height * width
        self._update(self.mean, mean)
        self._update(self.var, var * (count / max(count - 1, 1)))
        if mean.ndim == 1:
            return mean, var
        # Only these small arrays are regrouped, never the activations: any layout of the batch will do.
        mean, var = (jnp.repeat(a, self.span, axis=0).reshape(batch, 1, 1, channels) for a in (mean, var))
        return mean, var

    def _group_mean(self, x: jax.Array) -> jax.Array:
        """Means over groups of samples: [B, C] to [B / span, C].

        Not pinned to a layout: fewer groups than devices would be pinned whole, and gathered on every
        device, where XLA, left alone, reduces inside each group of devices.
        """
        return x.reshape(-1, self.span, x.shape[-1]).mean(1)

    def _update(self, running: nnx.BatchStat, batch: jax.Array) -> None:
        old, new = running[...], lax.stop_gradient(batch).reshape(-1, batch.shape[-1]).mean(0)
        running.set_value(old + (1 - self.momentum) * (new.astype(old.dtype) - old))
