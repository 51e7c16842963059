"""Attention, feed-forward and normalisation of Transformers, for whole sequences and one token at a time.

Products over heads keep the head axis apart (`[L, H, K]` for H heads of width K), so that a layout can
split heads over devices. Scores and norms are at least float32, whatever the compute dtype.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy

MASKED = -1e9
"""Added to scores that must not count. Finite: a row without any key becomes a mean, not NaN."""


def position_encoding(length: int, width: int) -> np.ndarray:
    """Sines, then cosines, of positions at wavelengths from 2 pi to 20,000 pi: [length, width] float64.

    Vaswani et al., arXiv:1706.03762, section 3.5, with both halves side by side as tensor2tensor has them.
    """
    scales = np.exp(np.arange(width // 2) * -(np.log(1e4) / max(width // 2 - 1, 1)))
    angles = np.arange(length)[:, None] * scales
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and scales up the others; without a key it changes nothing."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


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
        y = x.astype(self.dtype)
        centred = y - y.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention without biases (arXiv:1706.03762, section 3.2).

    Queries, keys and values of self-attention are one product, keys and values of attention to
    another sequence likewise: few large products rather than many small ones.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        to_self: bool,
        dropout_rate: float,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer.

        Args:
            width: D, a multiple of `num_heads`.
            num_heads: H.
            to_self: whether queries and keys come from the same sequence.
            dropout_rate: of attention weights.
            policy: dtypes.
            rngs: holds the stream "params".

        Raises:
            ValueError: the heads do not divide the width.
        """
        if width % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {width}")
        self.head_width = width // num_heads
        self.dropout_rate = dropout_rate
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
        y = jnp.einsum("bld,dchk->cblhk", x.astype(self.dtype), kernel[...].astype(self.dtype))
        return [constrain(part, "batch", None, "heads", None) for part in y]

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
        """[B, H, L, M] of queries [B, L, H, K] and keys [B, M, H, K]; `MASKED` where not `mask` [B, L, M]."""
        scores = jnp.einsum("blhk,bmhk->bhlm", q, k, preferred_element_type=self.score_dtype)
        return jnp.where(mask[:, None], scores, MASKED)

    def attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """What queries [B, L, H, K] find in values [B, M, H, K] under `mask` [B, L, M] bool: [B, L, D]."""
        weights = jax.nn.softmax(self.scores(q, k, mask)).astype(self.dtype)
        weights = dropout(weights, self.dropout_rate, key)
        return self.combine(jnp.einsum("bhlm,bmhk->blhk", weights, v))

    def combine(self, heads: jax.Array) -> jax.Array:
        """[B, L, H, K] to [B, L, D]."""
        heads = constrain(heads, "batch", None, "heads", None)
        return jnp.einsum("blhk,hkd->bld", heads, self.out[...].astype(self.dtype))


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
        y = jnp.dot(cast(x), cast(self.kernel_in[...])) + cast(self.bias_in[...])
        y = constrain(nnx.relu(y), "batch", None, "mlp")
        y = dropout(y, self.dropout_rate, key)
        return jnp.dot(y, cast(self.kernel_out[...])) + cast(self.bias_out[...])


def _glorot(rngs: nnx.Rngs, shape: tuple[int, int], policy: Policy) -> jax.Array:
    """Uniform with variance 2 / (fan-in + fan-out) (Glorot and Bengio, 2010)."""
    return initializers.glorot_uniform()(rngs.params(), shape, policy.param_dtype)
