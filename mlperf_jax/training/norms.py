"""Norms of gradients and parameters, each of the whole array however it is split over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def norm(x: jax.Array, stacked: bool = False) -> jax.Array:
    """The Euclidean norm, in at least float32: [].

    Args:
        x: an array.
        stacked: whether it holds the arrays of L layers; then each has its own norm, [L, 1, ..., 1].
    """
    axes = tuple(range(1, x.ndim)) if stacked else None
    return jnp.sqrt(jnp.sum(_squares(x), axis=axes, keepdims=stacked))


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Gradients no longer than `limit`, all of them taken as one vector.

    g <- g * limit / max(|all g|, limit), as `tf.clip_by_global_norm` and apex's FusedLAMB have it; PyTorch's
    `clip_grad_norm_` adds 1e-6 to the norm. The norm is at least float32.
    """

    def update(
        grads: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        length = jnp.sqrt(sum(jnp.sum(_squares(g)) for g in jax.tree.leaves(grads)))
        factor = limit / jnp.maximum(length, limit)
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _squares(x: jax.Array) -> jax.Array:
    return jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
