"""Normalisation of the vision models: over batches, and of every sample by itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mlperf_jax.precision import Policy


@jax.custom_vjp
def _summed_apart(x: Any) -> Any:
    """Its argument; whatever is made of its gradients stays apart from the sums that they are.

    XLA would merge what follows beta's gradient of a group, the sum over groups and the rounding to bfloat16, into
    the sum over the group: for TPUs it makes of it a second pass over the output's gradient, bfloat16 throughout.
    Kept apart, the sums for gamma and beta are float32 and computed beside what else reads that array.
    """
    return x


def _summed_apart_forward(x: Any) -> tuple[Any, None]:
    return x, None


def _summed_apart_backward(_: None, gradients: Any) -> tuple[Any]:
    return (lax.optimization_barrier(gradients),)


_summed_apart.defvjp(_summed_apart_forward, _summed_apart_backward)


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
        gain, shift = _summed_apart((gain, shift))
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


class GroupNorm(nnx.Module):
    """Normalisation of every sample by itself, over groups of channels (Wu and He, arXiv:1803.08494).

    Statistics are at least float32.
    """

    def __init__(
        self, features: int, groups: int, *, epsilon: float = 1e-5, affine: bool = True, policy: Policy
    ) -> None:
        """Builds the layer.

        Args:
            features: C.
            groups: of C / groups channels that follow each other.
            epsilon: added to the variance.
            affine: whether there are a scale and a bias to learn; else they are 1 and 0.
            policy: dtypes.

        Raises:
            ValueError: the groups do not divide the features.
        """
        if features % groups:
            raise ValueError(f"{groups} groups do not divide {features} features")
        self.dtype = jnp.promote_types(policy.compute_dtype, jnp.float32)
        self.affine = affine
        if affine:
            self.scale = nnx.Param(jnp.ones(features, policy.param_dtype), axes=("channels",))
            self.bias = nnx.Param(jnp.zeros(features, policy.param_dtype), axes=("channels",))
        self.groups = groups
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, ..., C] to the same shape and dtype."""
        y = x.astype(self.dtype)
        centred = y - self._group_mean(y)
        y = centred * lax.rsqrt(self._group_mean(jnp.square(centred)) + self.epsilon)
        if self.affine:
            y = y * self.scale[...].astype(self.dtype) + self.bias[...].astype(self.dtype)
        return y.astype(x.dtype)

    def _group_mean(self, x: jax.Array) -> jax.Array:
        """Means of a sample's groups, for each of their channels: [B, ..., C] to [B, 1, ..., 1, C].

        Only these small arrays are regrouped, never the activations: any layout of them will do.
        """
        means = x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
        of_groups = means.reshape(*means.shape[:-1], self.groups, -1).mean(-1)
        return jnp.repeat(of_groups, means.shape[-1] // self.groups, axis=-1)


class InstanceNorm(GroupNorm):
    """Normalisation of every channel of every sample by itself (Ulyanov et al., arXiv:1607.08022).

    Without running statistics, and by default, unlike PyTorch's, with a scale and a bias.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, affine: bool = True, policy: Policy) -> None:
        """Builds the layer; see `GroupNorm`."""
        super().__init__(features, features, epsilon=epsilon, affine=affine, policy=policy)
