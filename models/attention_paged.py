"""Attention of new tokens to keys and values that lie in pages, one text's anywhere among others'.

The idea is vLLM's (Kwon et al., arXiv:2309.06180). A loop takes one page of every text at a time, softmax as it goes, and
ends with the longest text in use, so that one program serves short texts in little time. Pages that a query does not see
change nothing, to the last bit: what a text's tokens find does not depend on who else is there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from models.attention_mask import MASKED


def written(
    cache: jax.Array, new: jax.Array, tables: jax.Array, positions: jax.Array, real: jax.Array
) -> jax.Array:
    """A cache with what is new in it.

    Args:
        cache: [N, G, page, K] keys or values; page 0 takes what is not real.
        new: [B, L, G, K].
        tables: [B, P] int32, the pages of each text in order.
        positions: [B, L] int32, where in its text each token stands.
        real: [B, L] bool.
    """
    size = cache.shape[2]
    at = jnp.minimum(positions // size, tables.shape[1] - 1)
    pages = jnp.where(real, jnp.take_along_axis(tables, at, axis=1), 0)
    return cache.at[pages, :, positions % size].set(new.astype(cache.dtype))


def attend_paged(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    tables: jax.Array,
    positions: jax.Array,
    lengths: jax.Array,
    *,
    window: int | None = None,
) -> jax.Array:
    """What queries find in the values of their text, up to their own position: [B, L, H, K].

    Args:
        q: [B, L, H, K].
        keys, values: [N, G, page, K], the queries' own among them.
        tables: [B, P] int32.
        positions: [B, L] int32 of the queries.
        lengths: [B] int32, positions of each text that are written.
        window: positions that a query sees, its own among them; None for all.
    """
    (batch, length, heads, width), (groups, size) = q.shape, keys.shape[1:3]
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    q = jnp.moveaxis(q.reshape(batch, length, groups, heads // groups, width), 1, 3)
    shape = (batch, groups, heads // groups, length)
    scale = jnp.asarray(width**-0.5, dtype)

    def page(number: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, total, mixed = found
        pages = lax.dynamic_index_in_dim(tables, number, axis=1, keepdims=False)
        at = number * size + jnp.arange(size)
        behind = positions[:, :, None] - at
        visible = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        scores = jnp.einsum("bgrlk,bgmk->bgrlm", q, keys[pages], preferred_element_type=dtype) * scale
        scores = jnp.where(visible[:, None, None], scores, MASKED)
        # Not by the weights alone: 0 times what somebody else left in the page may not be 0.
        there = (at < lengths[:, None])[:, None, :, None]
        own = jnp.where(there, values[pages], 0)
        higher = jnp.maximum(most, scores.max(-1))
        weights, kept = jnp.exp(scores - higher[..., None]), jnp.exp(most - higher)
        more = jnp.einsum("bgrlm,bgmk->bgrlk", weights.astype(own.dtype), own, preferred_element_type=dtype)
        return higher, total * kept + weights.sum(-1), mixed * kept[..., None] + more

    start = jnp.full(shape, MASKED, dtype), jnp.zeros(shape, dtype), jnp.zeros((*shape, width), dtype)
    _, total, mixed = lax.fori_loop(0, -(-lengths.max() // size), page, start)
    found = mixed / jnp.where(total > 0, total, 1)[..., None]
    return jnp.moveaxis(found, 3, 1).reshape(batch, length, heads, width).astype(values.dtype)
