"""Attention of new tokens to keys and values that lie in pages, one text's anywhere among others'.

The idea is vLLM's (Kwon et al., arXiv:2309.06180). What a text's tokens find does not depend on who else is there, to the
last bit in steps of as many texts. Parts of prompts gather the pages of their text, one at a time, softmax as they go
(`attend_part`). A step of all texts is bound by the bytes of the cache, and gathers nothing: every page works where it lies, on
the query of the text that owns it, and what a text's pages found is put together (`attend_step`). Of few texts the pages are
gathered before (`pages_of`).

The pages of a cache lie in one bank or several, turn by turn: XLA:CPU multiplies a batch of small matrices with one core, and banks
side by side. Keys lie turned, as products want them, but on a TPU, which writes whole rows and would turn all of the cache before and
after each program. What is found is the same.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from models.attention_mask import MASKED


@functools.partial(jax.tree_util.register_dataclass, data_fields=("keys", "values"), meta_fields=("turned",))
@dataclasses.dataclass(frozen=True)
class Bank:
    """A part of the cache of one layer.

    Attributes:
        keys: [N, G, page, K], or turned [N, G, K, page].
        values: [N, G, page, K], all of them finite.
        turned: whether keys are.
    """

    keys: jax.Array
    values: jax.Array
    turned: bool = False

    @property
    def of_keys(self) -> str:
        """The last two axes of keys, m of a page and k of a head, for `einsum`."""
        return "km" if self.turned else "mk"


Cache = Sequence[Bank]
"""Page n lies in bank n mod the number of banks."""


class Owners(NamedTuple):
    """Whose pages are, for a step.

    Attributes:
        text: [N] int32; of pages that nobody has it means nothing.
        start: [N] int32, the position that a page begins with.
    """

    text: jax.Array
    start: jax.Array


def empty(
    pages: int,
    groups: int,
    page: int,
    width: int,
    dtype: DTypeLike,
    *,
    banks: int = 1,
    turned: bool = False,
) -> tuple[Bank, ...]:
    """A cache of zeros, for at least so many pages."""
    values = (-(-pages // banks), groups, page, width)
    keys = (*values[:2], width, page) if turned else values
    return tuple(Bank(jnp.zeros(keys, dtype), jnp.zeros(values, dtype), turned) for _ in range(banks))


def written(
    cache: Cache, keys: jax.Array, values: jax.Array, tables: jax.Array, positions: jax.Array, real: jax.Array
) -> tuple[Bank, ...]:
    """A cache with what is new in it, row by row.

    Values that are no numbers are kept as 0, behind a key of NaN: who sees it gets NaN, as from themselves, and who does not see it,
    but finds it in a page that was somebody else's, can weigh it by 0.

    Args:
        cache: before.
        keys, values: [B, L, G, K].
        tables: [B, P] int32, the pages of each text in order.
        positions: [B, L] int32, where in its text each token stands.
        real: [B, L] bool; others leave nothing.
    """
    size = cache[0].values.shape[2]
    pages = jnp.take_along_axis(tables, jnp.minimum(positions // size, tables.shape[1] - 1), axis=1)
    keys, values = _sound(cache, keys, values)

    def one(number: int, bank: Bank) -> Bank:
        here = real & (pages % len(cache) == number)
        own = jnp.where(here, pages // len(cache), len(bank.keys))  # beyond the last, nowhere
        at = positions % size
        place = (own, slice(None), slice(None), at) if bank.turned else (own, slice(None), at)
        return dataclasses.replace(
            bank,
            keys=bank.keys.at[place].set(keys, mode="drop"),
            values=bank.values.at[own, :, at].set(values, mode="drop"),
        )

    return tuple(one(number, bank) for number, bank in enumerate(cache))


def written_pages(
    cache: Cache, keys: jax.Array, values: jax.Array, tables: jax.Array, start: jax.Array, count: jax.Array
) -> tuple[Bank, ...]:
    """A cache with parts of texts in it, each of which begins a page.

    As `written`, but pages in one piece: of some hundred rows a TPU's compiler makes a reason to copy the whole cache. Behind a part
    its last page holds zeros.

    Args:
        cache: before.
        keys, values: [B, L, G, K].
        tables: [B, P] int32, the pages of each text in order.
        start: [B] int32, where in its text each part begins: multiples of the page.
        count: [B] int32, how many of the L there are.
    """
    (batch, length, groups, width), size = keys.shape, cache[0].values.shape[2]
    number = -(-length // size)
    real = (jnp.arange(number * size) < count[:, None])[..., None, None]
    fill = ((0, 0), (0, number * size - length), (0, 0), (0, 0))

    def paged(rows: jax.Array) -> jax.Array:
        rows = jnp.where(real, jnp.pad(rows, fill), 0)
        return jnp.moveaxis(rows.reshape(batch * number, size, groups, width), 1, 2)

    keys, values = (paged(rows) for rows in _sound(cache, keys, values))
    nth = start[:, None] // size + jnp.arange(number)
    pages = jnp.take_along_axis(tables, jnp.minimum(nth, tables.shape[1] - 1), axis=1).reshape(-1)
    used = (jnp.arange(number) * size < count[:, None]).reshape(-1)

    def one(number: int, bank: Bank) -> Bank:
        own = jnp.where(used & (pages % len(cache) == number), pages // len(cache), len(bank.keys))
        return dataclasses.replace(
            bank,
            keys=bank.keys.at[own].set(jnp.swapaxes(keys, 2, 3) if bank.turned else keys, mode="drop"),
            values=bank.values.at[own].set(values, mode="drop"),
        )

    return tuple(one(number, bank) for number, bank in enumerate(cache))


def _sound(cache: Cache, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values as the cache holds them."""
    sound = jnp.isfinite(values)
    keys = jnp.where(sound.all(-1, keepdims=True), keys, jnp.nan).astype(cache[0].keys.dtype)
    return keys, jnp.where(sound, values, 0).astype(cache[0].values.dtype)


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
    (batch, length, heads, width), (groups, size) = q.shape, cache[0].values.shape[1:3]
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    scale = jnp.asarray(width**-0.5, dtype)
    q = jnp.moveaxis(q.reshape(batch, length, groups, heads // groups, width), 1, 3)
    shape = (batch, groups, heads // groups, length)

    def page(number: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, total, mixed = found
        pages = lax.dynamic_index_in_dim(tables, number, axis=1, keepdims=False)
        visible = _visible(positions[:, :, None], number * size + jnp.arange(size), window)[:, None, None]
        keys, values = (
            _gathered([getattr(bank, part) for bank in cache], pages) for part in ("keys", "values")
        )
        product = f"bgrlk,bg{cache[0].of_keys}->bgrlm"
        scores = jnp.einsum(product, q, keys, preferred_element_type=dtype) * scale
        scores = jnp.where(visible, scores, MASKED)
        higher = jnp.maximum(most, scores.max(-1))
        weights = jnp.where(visible, jnp.exp(scores - higher[..., None]), 0)
        kept = jnp.exp(most - higher)
        more = jnp.einsum(
            "bgrlm,bgmk->bgrlk", weights.astype(values.dtype), values, preferred_element_type=dtype
        )
        return higher, total * kept + weights.sum(-1), mixed * kept[..., None] + more

    start = jnp.full(shape, MASKED, dtype), jnp.zeros(shape, dtype), jnp.zeros((*shape, width), dtype)
    _, total, mixed = lax.fori_loop(0, -(-lengths.max() // size), page, start)
    found = mixed / jnp.where(total != 0, total, 1)[..., None]
    return jnp.moveaxis(found, 3, 1).reshape(batch, length, heads, width).astype(q.dtype)


def _gathered(banks: Sequence[jax.Array], pages: jax.Array) -> jax.Array:
    """Pages [B] out of banks [N, ...]: [B, ...]."""
    found = banks[0][pages // len(banks)]
    for number, bank in enumerate(banks[1:], 1):
        mine = (pages % len(banks) == number).reshape(-1, *[1] * (found.ndim - 1))
        found = jnp.where(mine, bank[pages // len(banks)], found)
    return found


def pages_of(cache: Cache, tables: jax.Array) -> tuple[Bank]:
    """A copy of some texts' pages as a cache of their own: page [b, p] of tables [B, P] is number b * P + p of it."""
    keys, values = (
        _gathered([getattr(bank, part) for bank in cache], tables.ravel()) for part in ("keys", "values")
    )
    return (Bank(keys, values, cache[0].turned),)


def owners(tables: jax.Array, works: jax.Array, pages: int, size: int) -> Owners:
    """Whose each page of a cache is.

    Args:
        tables: [B, P] int32; no page is in two texts that are at work, but for page 0.
        works: [B] bool; what the tables of others say is past.
        pages: N of the cache, all banks together.
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
    (batch, _, heads, width), (groups, size) = q.shape, cache[0].values.shape[1:3]
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    scale = jnp.asarray(width**-0.5, dtype)

    def one(number: int, bank: Bank) -> tuple[jax.Array, ...]:
        """Of every page of a bank, as if there were no other: its highest score, and sums of weights and of what is weighed."""
        texts, start = (whole[number :: len(cache)] for whole in owned)
        own = q.reshape(batch, groups, heads // groups, width)[texts]
        visible = _visible(positions[texts][:, None], start[:, None] + jnp.arange(size), window)[
            :, None, None
        ]
        product = f"ngrk,ng{bank.of_keys}->ngrm"
        scores = jnp.einsum(product, own, bank.keys, preferred_element_type=dtype) * scale
        scores = jnp.where(visible, scores, MASKED)
        most = scores.max(-1)
        weights = jnp.where(visible, jnp.exp(scores - most[..., None]), 0)
        mixed = jnp.einsum(
            "ngrm,ngmk->ngrk", weights.astype(bank.values.dtype), bank.values, preferred_element_type=dtype
        )
        return most, weights.sum(-1), mixed

    found = zip(*(one(number, bank) for number, bank in enumerate(cache)), strict=True)
    most, total, mixed = (jnp.concatenate(part) for part in found)
    pages = tables % len(cache) * len(cache[0].keys) + tables // len(cache)

    # Of the pages of every text that are in use.
    used = (jnp.arange(tables.shape[1]) * size <= positions[:, None])[..., None, None]
    highest = jnp.where(used, most[pages], MASKED)
    share = jnp.where(used, jnp.exp(highest - highest.max(1, keepdims=True)), 0)
    total = (share * jnp.where(used, total[pages], 0)).sum(1)
    mixed = (share[..., None] * jnp.where(used[..., None], mixed[pages], 0)).sum(1) / total[..., None]
    return mixed.reshape(batch, 1, heads, width).astype(q.dtype)


def _visible(query: jax.Array, key: jax.Array, window: int | None) -> jax.Array:
    """Whether queries see keys, by the positions of both."""
    behind = query - key
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)
