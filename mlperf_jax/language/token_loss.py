"""Cross-entropy of tokens by tiles of positions, so that logits [B, L, V] never stand in memory.

A loss that is a sum knows its gradient as soon as it knows a tile's logits: it is taken in the same pass, a product fewer than
if the backward pass made the logits once more. A tile holds positions that lie far apart, some of each part into which a layout may
have split the length, and logits of a part of the tokens each where it splits these.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mlperf_jax.parallel.layout import constrain, constrain_parameter


def token_losses(states: jax.Array, kernel: jax.Array, labels: jax.Array, *, tile: int) -> jax.Array:
    """Cross-entropy of each label: [B, L], at least float32.

    Args:
        states: [B, L, D].
        kernel: [D, V] of the product that makes logits of them, in their dtype.
        labels: [B, L] int, in [0, V).
        tile: positions whose logits there are at once.
    """

    def one(_: None, part: Any) -> tuple[None, jax.Array]:
        x, label = part
        logits = _logits(x, kernel)
        return None, _log_sum(logits)[..., 0] - _of_label(logits, label)

    parts = [_cut(x, tile) for x in (states, labels)]
    _, losses = lax.scan(one, None, tuple(parts))
    return _joined(losses, states.shape[1])


def summed_loss(
    states: jax.Array, kernel: jax.Array, labels: jax.Array, weights: jax.Array, *, tile: int
) -> jax.Array:
    """The sum over `token_losses` times `weights` [B, L]: [], at least float32; weights have no gradient."""
    return _summed(tile, states, kernel, labels, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(
    tile: int, states: jax.Array, kernel: jax.Array, labels: jax.Array, weights: jax.Array
) -> jax.Array:
    losses = token_losses(states, kernel, labels, tile=tile)
    return (losses * weights.astype(losses.dtype)).sum()


def _forward(tile: int, states: Any, kernel: Any, labels: Any, weights: Any) -> tuple[jax.Array, Any]:
    """Each argument with whether it is differentiated: a frozen kernel asks for no gradient."""
    wanted = kernel.perturbed
    states, kernel, labels, weights = (x.value for x in (states, kernel, labels, weights))

    def one(carry: Any, part: Any) -> tuple[Any, jax.Array]:
        total, of_kernel = carry
        x, label, weight = part
        logits = _logits(x, kernel)
        log_sum = _log_sum(logits)
        weight = weight.astype(logits.dtype)
        total += ((log_sum[..., 0] - _of_label(logits, label)) * weight).sum()
        gradient = (jnp.exp(logits - log_sum) - _is_label(logits, label)) * weight[..., None]
        gradient = constrain(gradient.astype(x.dtype), "batch", "position", "vocab")
        if wanted:
            more = jnp.einsum("btd,btv->dv", x, gradient, preferred_element_type=of_kernel.dtype)
            of_kernel = constrain_parameter(of_kernel + more, "embed", "vocab")
        return (total, of_kernel), jnp.einsum("btv,dv->btd", gradient, kernel)

    dtype = jnp.promote_types(states.dtype, jnp.float32)
    start = jnp.zeros((), dtype), jnp.zeros(kernel.shape if wanted else (), dtype)
    parts = [_cut(x, tile) for x in (states, labels, weights)]
    (total, of_kernel), of_states = lax.scan(one, start, tuple(parts))
    return total, (_joined(of_states, states.shape[1]), of_kernel.astype(kernel.dtype) if wanted else None)


def _backward(tile: int, kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
    of_states, of_kernel = (None if x is None else x * gradient.astype(x.dtype) for x in kept)
    return of_states, of_kernel, None, None


_summed.defvjp(_forward, _backward, symbolic_zeros=True)


def _logits(states: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, T, V], at least float32."""
    dtype = jnp.promote_types(states.dtype, jnp.float32)
    logits = jnp.einsum("btd,dv->btv", states, kernel, preferred_element_type=dtype)
    return constrain(logits, "batch", "position", "vocab")


def _log_sum(logits: jax.Array) -> jax.Array:
    """[B, T, 1]"""
    return jax.nn.logsumexp(logits, -1, keepdims=True)


def _is_label(logits: jax.Array, label: jax.Array) -> jax.Array:
    """[B, T, V], 1 at the labels: compared where they lie, as a layout may have split them."""
    return (label[..., None] == lax.broadcasted_iota(label.dtype, logits.shape, 2)).astype(logits.dtype)


def _of_label(logits: jax.Array, label: jax.Array) -> jax.Array:
    return (logits * _is_label(logits, label)).sum(-1)


def _cut(x: jax.Array, tile: int) -> jax.Array:
    """[B, L, ...] to [tiles, B, T, ...]: tile i has positions i, i + tiles, ..., and zeros where there are none left."""
    length = x.shape[1]
    tiles = -(-length // tile)
    rows = -(-length // tiles)
    x = jnp.pad(x, ((0, 0), (0, tiles * rows - length), *[(0, 0)] * (x.ndim - 2)))
    x = jnp.moveaxis(x.reshape(x.shape[0], rows, tiles, *x.shape[2:]), 2, 0)
    return constrain(x, None, "batch", "position", *[None] * (x.ndim - 3))


def _joined(x: jax.Array, length: int) -> jax.Array:
    """The reverse."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
