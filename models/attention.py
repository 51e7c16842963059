"""Attention, feed-forward and normalisation of Transformers, for whole sequences and one token at a time.

Products over heads keep the head axis apart (`[L, H, K]` for H heads of width K), so that a layout can
split heads over devices. Scores and norms are at least float32, whatever the compute dtype.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jax.typing import DTypeLike

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.attention_function import attend
from models.attention_mask import MASKED, Mask
from models.products import product
from models.random_bits import dropped_relu


def position_encoding(length: int, width: int) -> np.ndarray:
    """Sines, then cosines, of positions at wavelengths from 2 pi to 20,000 pi: [length, width] float64.

    Vaswani et al., arXiv:1706.03762, section 3.5, with both halves side by side as tensor2tensor has them.
    """
    scales = np.exp(np.arange(width // 2) * -(np.log(1e4) / max(width // 2 - 1, 1)))
    angles = np.arange(length)[:, None] * scales
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def split(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """`count` keys from one, or as many times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al., arXiv:1607.06450) over the last axis."""

    def __init__(self, features: int, *, epsilon: float = 1e-6, policy: Policy) -> None:
        self.scale = nnx.Param(jnp.ones(features, policy.param_dtype), axes=("embed",))
        self.bias = nnx.Param(jnp.zeros(features, policy.param_dtype), axes=("embed",))
        self.dtype = jnp.promote_types(policy.compute_dtype, jnp.float32)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D] of the same dtype."""
        return _normed(self.dtype, self.epsilon, x, self.scale[...], self.bias[...])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normed(dtype: DTypeLike, epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return _normed_forward(dtype, epsilon, x, scale, bias)[0]


def _normed_forward(
    dtype: DTypeLike, epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, Any]:
    y = x.astype(dtype)
    mean = y.mean(-1, keepdims=True)
    centred = y - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return (centred * inverse * scale + bias).astype(x.dtype), (x, scale, mean, inverse)


def _normed_backward(dtype: DTypeLike, epsilon: float, kept: Any, gradient: jax.Array) -> Any:
    """Of what went in, which is narrower than what is in between, and of two numbers a row."""
    x, scale, mean, inverse = kept
    y = (x.astype(dtype) - mean) * inverse
    gradient = gradient.astype(dtype)
    rows = tuple(range(x.ndim - 1))
    of_scale, of_bias = (gradient * y).sum(rows), gradient.sum(rows)
    inner = gradient * scale
    dx = inverse * (inner - inner.mean(-1, keepdims=True) - y * (inner * y).mean(-1, keepdims=True))
    return dx.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(scale.dtype)


_normed.defvjp(_normed_forward, _normed_backward)


class RMSNorm(nnx.Module):
    """Division by the root of the mean square over the last axis (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, features: int, *, epsilon: float, axis: str | None = "embed", policy: Policy) -> None:
        self.scale = nnx.Param(jnp.ones(features, policy.param_dtype), axes=(axis,))
        self.dtype = jnp.promote_types(policy.compute_dtype, jnp.float32)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D] of the same dtype."""
        return _scaled(self.dtype, self.epsilon, x, self.scale[...])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scaled(dtype: DTypeLike, epsilon: float, x: jax.Array, scale: jax.Array) -> jax.Array:
    return _scaled_forward(dtype, epsilon, x, scale)[0]


def _scaled_forward(
    dtype: DTypeLike, epsilon: float, x: jax.Array, scale: jax.Array
) -> tuple[jax.Array, Any]:
    y = x.astype(dtype)
    inverse = jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon)
    return (y * inverse * scale).astype(x.dtype), (x, scale, inverse)


def _scaled_backward(dtype: DTypeLike, epsilon: float, kept: Any, gradient: jax.Array) -> Any:
    """Of what went in, which is narrower than what is in between, and of one number a row."""
    x, scale, inverse = kept
    y, gradient = x.astype(dtype) * inverse, gradient.astype(dtype)
    inner = gradient * scale
    dx = inverse * (inner - y * (inner * y).mean(-1, keepdims=True))
    return dx.astype(x.dtype), (gradient * y).sum(tuple(range(x.ndim - 1))).astype(scale.dtype)


_scaled.defvjp(_scaled_forward, _scaled_backward)


class Attention(nnx.Module):
    """Multi-head attention without biases (arXiv:1706.03762, section 3.2).

    Queries, keys and values of self-attention are one parameter, keys and values of attention to
    another sequence likewise.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        to_self: bool,
        dropout_rate: float,
        choice: str = "auto",
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer.

        Args:
            width: D, a multiple of `num_heads`.
            num_heads: H.
            to_self: whether queries and keys come from the same sequence.
            dropout_rate: of attention weights.
            choice: one of `models.attention_function.CHOICES`, for training.
            policy: dtypes.
            rngs: holds the stream "params".

        Raises:
            ValueError: the heads do not divide the width.
        """
        if width % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {width}")
        self.head_width = width // num_heads
        self.dropout_rate, self.choice = dropout_rate, choice
        self.dtype = policy.compute_dtype
        self.score_dtype = jnp.promote_types(policy.compute_dtype, jnp.float32)

        def project(count: int) -> nnx.Param:
            kernels = [_glorot(rngs, (width, width), policy) for _ in range(count)]
            kernel = jnp.stack(kernels, 1).reshape(width, count, num_heads, self.head_width)
            return nnx.Param(kernel, axes=("embed", None, "heads", "kv"))

        if to_self:
            self.query_key_value = project(3)
        else:
            self.query = project(1)
            self.key_value = project(2)
        out = _glorot(rngs, (width, width), policy).reshape(num_heads, self.head_width, width)
        self.out = nnx.Param(out, axes=("heads", "kv", "embed"))

    def _project(self, kernel: nnx.Param, x: jax.Array) -> list[jax.Array]:
        """[B, L, D] to as many [B, L, H, K] as the kernel holds."""
        x, kernels = x.astype(self.dtype), kernel[...].astype(self.dtype)
        # Heads side by side while they are multiplied: apart, a TPU lays them out at twice the size.
        parts = [product(x, kernels[:, n].reshape(x.shape[-1], -1)) for n in range(kernels.shape[1])]
        parts = [part.reshape(*x.shape[:-1], *kernels.shape[2:]) for part in parts]
        return [constrain(part, "batch", None, "heads", None) for part in parts]

    def queries_keys_values(self, x: jax.Array) -> list[jax.Array]:
        """Of self-attention: [B, L, D] to three [B, L, H, K], the queries scaled."""
        q, k, v = self._project(self.query_key_value, x)
        return [self._scaled(q), k, v]

    def queries(self, x: jax.Array) -> jax.Array:
        """Of attention to another sequence: [B, L, D] to [B, L, H, K], scaled."""
        return self._scaled(self._project(self.query, x)[0])

    def keys_values(self, x: jax.Array) -> list[jax.Array]:
        """Of the sequence attended to: [B, M, D] to two [B, M, H, K]."""
        return self._project(self.key_value, x)

    def _scaled(self, q: jax.Array) -> jax.Array:
        return q * jnp.asarray(self.head_width**-0.5, q.dtype)

    def scores(self, q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, H, L, M] of queries [B, L, H, K] and keys [B, H, K, M]; `MASKED` where not `mask` [B, L, M]."""
        scores = jnp.einsum("blhk,bhkm->bhlm", q, k, preferred_element_type=self.score_dtype)
        return jnp.where(mask[:, None], scores, MASKED)

    def attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, key: jax.Array | None = None
    ) -> jax.Array:
        """What scaled queries [B, L, H, K] find in values [B, M, H, K] under a mask: [B, L, D]."""
        choice = "auto" if key is None else self.choice  # evaluation and decoding have rows of every length
        found = attend(q, k, v, mask, scale=1, rate=self.dropout_rate, key=key, choice=choice)
        return self.combine(found)

    def combine(self, heads: jax.Array) -> jax.Array:
        """[B, L, H, K] to [B, L, D]."""
        heads = constrain(heads, "batch", None, "heads", None)
        out = self.out[...].astype(self.dtype)
        return product(heads.reshape(*heads.shape[:2], -1), out.reshape(-1, out.shape[-1]))


class FeedForward(nnx.Module):
    """Two products with a ReLU between them, both with bias."""

    def __init__(
        self, width: int, mlp_width: int, *, dropout_rate: float, policy: Policy, rngs: nnx.Rngs
    ) -> None:
        self.kernel_in = nnx.Param(_glorot(rngs, (width, mlp_width), policy), axes=("embed", "mlp"))
        self.bias_in = nnx.Param(jnp.zeros(mlp_width, policy.param_dtype), axes=("mlp",))
        self.kernel_out = nnx.Param(_glorot(rngs, (mlp_width, width), policy), axes=("mlp", "embed"))
        self.bias_out = nnx.Param(jnp.zeros(width, policy.param_dtype), axes=("embed",))
        self.dropout_rate = dropout_rate
        self.dtype = policy.compute_dtype

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [B, L, D] to [B, L, D]."""
        cast = functools.partial(jnp.asarray, dtype=self.dtype)
        y = product(cast(x), cast(self.kernel_in[...])) + cast(self.bias_in[...])
        y = constrain(dropped_relu(y, self.dropout_rate, key), "batch", None, "mlp")
        return product(y, cast(self.kernel_out[...])) + cast(self.bias_out[...])


def _glorot(rngs: nnx.Rngs, shape: tuple[int, int], policy: Policy) -> jax.Array:
    """Uniform with variance 2 / (fan-in + fan-out) (Glorot and Bengio, 2010)."""
    return initializers.glorot_uniform()(rngs.params(), shape, policy.param_dtype)
