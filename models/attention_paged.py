"""Attention of new tokens to keys and values that lie in pages, one text's anywhere among others'.

The idea is vLLM's (Kwon et al., arXiv:2309.06180). What a text's tokens find does not depend on who else is there, to the
last bit. Parts of prompts gather the pages of their text, one at a time, softmax as they go (`attend_part`). A step of all
texts is bound by the bytes of the cache, and gathers nothing: every page works where it lies, on the query of the text that owns
it, and what a text's pages found is put together (`attend_step`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from models.attention_mask import MASKED


class Cache(NamedTuple):
    """Of one layer; page 0 takes what is not real.

    Attributes:
        keys: [N, G, K, page], turned for products with queries.
        values: [N, G, page, K], all of them finite.
    """

    keys: jax.Array
    values: jax.Array


class Owners(NamedTuple):
    """Whose pages are, for a step.

    Attributes:
        text: [N] int32; of pages that nobody has it means nothing.
        start: [N] int32, the position that a page begins with.
    """

    text: jax.Array
    start: jax.Array


def empty(pages: int, groups: int, page: int, width: int, dtype: jnp.dtype) -> Cache:
    """A cache of zeros."""
    return Cache(
        jnp.zeros((pages, groups, width, page), dtype), jnp.zeros((pages, groups, page, width), dtype)
    )


def written(
    cache: Cache, keys: jax.Array, values: jax.Array, tables: jax.Array, positions: jax.Array, real: jax.Array
) -> Cache:
    """A cache with what is new in it.

    Values that are no numbers are kept as 0, behind a key of NaN: who sees it gets NaN, as from themselves, and who does not see it,
    but finds it in a page that was somebody else's, can weigh it by 0.

    Args:
        cache: before.
        keys, values: [B, L, G, K].
        tables: [B, P] int32, the pages of each text in order.
        positions: [B, L] int32, where in its text each token stands.
        real: [B, L] bool.
    """
    size = cache.values.shape[2]
    at = jnp.minimum(positions // size, tables.shape[1] - 1)
    pages = jnp.where(real, jnp.take_along_axis(tables, at, axis=1), 0)
    sound = jnp.isfinite(values)
    keys = jnp.where(sound.all(-1, keepdims=True), keys, jnp.nan).astype(cache.keys.dtype)
    values = jnp.where(sound, values, 0).astype(cache.values.dtype)
    return Cache(
        cache.keys.at[pages, :, :, positions % size].set(keys),
        cache.values.at[pages, :, positions % size].set(values),
    )


def attend_part(
    q: jax.Array,
    cache: Cache,
    tables: jax.Array,
    positions: jax.Array,
    lengths: jax.Array,
    *,
    window: int | None = None,
) -> jax.Array:
    """What queries find in the values of their text, up to their own position: [B, L, H, K].

    A loop over pages ends with the longest text in use, so that one program serves short texts in little time. Pages that a
    query does not see change nothing.

    Args:
        q: [B, L, H, K].
        cache: the queries' own keys and values in it.
        tables: [B, P] int32.
        positions: [B, L] int32 of the queries.
        lengths: [B] int32, positions of each text that are written.
        window: positions that a query sees, its own among them; None for all.
    """
    (batch, length, heads, width), (groups, size) = q.shape, cache.values.shape[1:3]
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    scale = jnp.asarray(width**-0.5, dtype)
    q = jnp.moveaxis(q.reshape(batch, length, groups, heads // groups, width), 1, 3)
    shape = (batch, groups, heads // groups, length)

    def page(number: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, total, mixed = found
        pages = lax.dynamic_index_in_dim(tables, number, axis=1, keepdims=False)
        visible = _visible(positions[:, :, None], number * size + jnp.arange(size), window)[:, None, None]
        scores = jnp.einsum("bgrlk,bgkm->bgrlm", q, cache.keys[pages], preferred_element_type=dtype) * scale
        scores = jnp.where(visible, scores, MASKED)
        higher = jnp.maximum(most, scores.max(-1))
        weights = jnp.where(visible, jnp.exp(scores - higher[..., None]), 0)
        kept, own = jnp.exp(most - higher), cache.values[pages]
        more = jnp.einsum("bgrlm,bgmk->bgrlk", weights.astype(own.dtype), own, preferred_element_type=dtype)
        return higher, total * kept + weights.sum(-1), mixed * kept[..., None] + more

    start = jnp.full(shape, MASKED, dtype), jnp.zeros(shape, dtype), jnp.zeros((*shape, width), dtype)
    _, total, mixed = lax.fori_loop(0, -(-lengths.max() // size), page, start)
    found = mixed / jnp.where(total != 0, total, 1)[..., None]
    return jnp.moveaxis(found, 3, 1).reshape(batch, length, heads, width).astype(q.dtype)


def owners(tables: jax.Array, works: jax.Array, pages: int, size: int) -> Owners:
    """Whose each page of a cache is.

    Args:
        tables: [B, P] int32; no page is in two texts that are at work, but for page 0.
        works: [B] bool; what the tables of others say is past.
        pages: N of the cache.
        size: positions of a page.
    """
    mine = jnp.where(works[:, None], tables, pages)  # beyond the last, for none
    texts, nth = (lax.broadcasted_iota(jnp.int32, tables.shape, axis) for axis in (0, 1))
    nobodys = jnp.zeros(pages, jnp.int32)
    return Owners(nobodys.at[mine].set(texts, mode="drop"), nobodys.at[mine].set(nth * size, mode="drop"))


def attend_step(
    q: jax.Array,
    cache: Cache,
    owned: Owners,
    tables: jax.Array,
    positions: jax.Array,
    *,
    window: int | None = None,
) -> jax.Array:
    """What one query of each text finds in the values of its text, up to its own position: [B, 1, H, K].

    Args:
        q: [B, 1, H, K].
        cache: the queries' own keys and values in it.
        owned: whose its pages are.
        tables: [B, P] int32.
        positions: [B] int32 of the queries.
        window: positions that a query sees, its own among them; None for all.
    """
    (batch, _, heads, width), (groups, size) = q.shape, cache.values.shape[1:3]
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    scale = jnp.asarray(width**-0.5, dtype)

    # Of every page, as if there were no other.
    own = q.reshape(batch, groups, heads // groups, width)[owned.text]
    at = owned.start[:, None] + jnp.arange(size)
    visible = _visible(positions[owned.text][:, None], at, window)[:, None, None]
    scores = jnp.einsum("ngrk,ngkm->ngrm", own, cache.keys, preferred_element_type=dtype) * scale
    scores = jnp.where(visible, scores, MASKED)
    most = scores.max(-1)
    weights = jnp.where(visible, jnp.exp(scores - most[..., None]), 0)
    mixed = jnp.einsum(
        "ngrm,ngmk->ngrk", weights.astype(cache.values.dtype), cache.values, preferred_element_type=dtype
    )

    # Of the pages of every text that are in use.
    used = (jnp.arange(tables.shape[1]) * size <= positions[:, None])[..., None, None]
    highest = jnp.where(used, most[tables], MASKED)
    share = jnp.where(used, jnp.exp(highest - highest.max(1, keepdims=True)), 0)
    total = (share * jnp.where(used, weights.sum(-1)[tables], 0)).sum(1)
    found = (share[..., None] * jnp.where(used[..., None], mixed[tables], 0)).sum(1) / total[..., None]
    return found.reshape(batch, 1, heads, width).astype(q.dtype)


def _visible(query: jax.Array, key: jax.Array, window: int | None) -> jax.Array:
    """Whether queries see keys, by the positions of both."""
    behind = query - key
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)
