"""Attention by blocks of keys: scores [L, M] never exist at once, in either pass.

Softmax as it goes (Milakov and Gimelshein, arXiv:1805.02867; Rabe and Staats, arXiv:2112.05682), and a
backward pass that computes the scores of each block again (Dao et al., arXiv:2205.14135): what is kept is
the result and each query's largest score and sum.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import random_bits
from models.attention_mask import MASKED, Mask


def blockwise(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    *,
    scale: float,
    rate: float,
    seed: jax.Array,
    block: int,
) -> jax.Array:
    """As `models.attention_function.attend`, `block` keys at a time.

    Args:
        q: [B, L, H, K].
        k, v: [B, M, G, K].
        mask: who sees what.
        scale: of scores.
        rate: of dropout; 0 for none.
        seed: [2] uint32, of dropout.
        block: keys.
    """
    fixed = _Fixed(mask.causal, mask.window, scale, rate, block)
    return _attend(fixed, q, k, v, mask.query_segment, mask.key_segment, seed)


@dataclasses.dataclass(frozen=True)
class _Fixed:
    causal: bool
    window: int | None
    scale: float
    rate: float
    block: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(fixed: _Fixed, *args: Any) -> jax.Array:
    return _forward(fixed, *args)[0]


def _forward(fixed: _Fixed, *args: Any) -> tuple[jax.Array, Any]:
    q, k, v, *_ = args
    work = _Work(fixed, *args)
    shape = work.q.shape[:-1]
    start = (
        jnp.full(shape, -jnp.inf, work.dtype),
        jnp.zeros(shape, work.dtype),
        jnp.zeros(work.q.shape, work.dtype),
    )

    def step(carry: Any, part: Any) -> tuple[Any, None]:
        largest, total, out = carry
        index, (key, value, segment) = part
        scores, _ = work.scores(key, segment, index)
        new = jnp.maximum(largest, scores.max(-1))
        shrink = jnp.exp(largest - new)
        weights = jnp.exp(scores - new[..., None])
        total = total * shrink + weights.sum(-1)
        used = work.dropped(weights, index).astype(v.dtype)
        more = jnp.einsum("bgrlm,bmgk->bgrlk", used, value, preferred_element_type=work.dtype)
        return (new, total, out * shrink[..., None] + more), None

    (largest, total, out), _ = jax.lax.scan(step, start, (jnp.arange(work.count), work.blocks))
    out = work.whole(out / total[..., None]).astype(v.dtype)
    return out, (args, out, largest, total)


def _backward(fixed: _Fixed, kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
    args, out, largest, total = kept
    q, k, v, *_ = args
    work = _Work(fixed, *args)
    of_out = work.grouped(gradient)
    mean = (of_out.astype(work.dtype) * work.grouped(out).astype(work.dtype)).sum(-1)

    def step(dq: jax.Array, part: Any) -> tuple[jax.Array, Any]:
        index, (key, value, segment) = part
        scores, visible = work.scores(key, segment, index)
        weights = jnp.exp(scores - largest[..., None]) / total[..., None]
        used = work.dropped(weights, index).astype(v.dtype)
        dv = jnp.einsum("bgrlm,bgrlk->bmgk", used, of_out, preferred_element_type=work.dtype)
        of_weights = jnp.einsum("bgrlk,bmgk->bgrlm", of_out, value, preferred_element_type=work.dtype)
        of_scores = weights * (work.dropped(of_weights, index) - mean[..., None]) * fixed.scale
        if visible is not None:  # of queries that see no key, where all weigh the same
            of_scores = jnp.where(visible, of_scores, 0)
        of_scores = of_scores.astype(q.dtype)
        dq += jnp.einsum("bgrlm,bmgk->bgrlk", of_scores, key, preferred_element_type=work.dtype)
        dk = jnp.einsum("bgrlm,bgrlk->bmgk", of_scores, work.q, preferred_element_type=work.dtype)
        return dq, (dk.astype(k.dtype), dv.astype(v.dtype))

    start = jnp.zeros(work.q.shape, work.dtype)
    dq, (dk, dv) = jax.lax.scan(step, start, (jnp.arange(work.count), work.blocks))
    return work.whole(dq).astype(q.dtype), work.joined(dk), work.joined(dv), None, None, None


_attend.defvjp(_forward, _backward)


class _Work:
    """The arrays as the loops want them: heads in front, keys in blocks, the last one filled up."""

    def __init__(
        self,
        fixed: _Fixed,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        query_segment: jax.Array | None,
        key_segment: jax.Array | None,
        seed: jax.Array,
    ) -> None:
        self.fixed, self.seed = fixed, seed
        self.mask = Mask(query_segment, key_segment, fixed.causal, fixed.window)
        self.num_keys, self.key_heads = k.shape[1:3]
        self.block = min(fixed.block, self.num_keys)
        self.count = -(-self.num_keys // self.block)
        self.dtype = jnp.promote_types(v.dtype, jnp.float32)
        self.q = self.grouped(q)
        self.blocks = self._cut(k), self._cut(v), None if key_segment is None else self._cut(key_segment)

    def grouped(self, x: jax.Array) -> jax.Array:
        """[B, L, H, K] to [B, G, H / G, L, K]."""
        batch, length, _, width = x.shape
        return x.reshape(batch, length, self.key_heads, -1, width).transpose(0, 2, 3, 1, 4)

    def whole(self, x: jax.Array) -> jax.Array:
        """The reverse."""
        batch, _, _, length, width = x.shape
        return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, -1, width)

    def _cut(self, x: jax.Array) -> jax.Array:
        """[B, M, ...] to [blocks, B, block, ...]."""
        missing = self.count * self.block - self.num_keys
        x = jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], self.count, self.block, *x.shape[2:]), 1, 0)

    def joined(self, x: jax.Array) -> jax.Array:
        """The reverse, without what was filled up."""
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], self.count * self.block, *x.shape[3:])[:, : self.num_keys]

    def scores(
        self, key: jax.Array, segment: jax.Array | None, index: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """[B, G, H / G, L, block], and which of them count; keys that were filled up weigh nothing at all."""
        scores = jnp.einsum("bgrlk,bmgk->bgrlm", self.q, key, preferred_element_type=self.dtype)
        scores = scores * jnp.asarray(self.fixed.scale, self.dtype)
        at = index * self.block + jnp.arange(self.block)
        visible = self.mask.visible(jnp.arange(self.q.shape[3]), at, segment)
        if visible is not None:
            visible = visible[:, None, None]
            scores = jnp.where(visible, scores, MASKED)
        if self.num_keys % self.block:
            scores = jnp.where(at < self.num_keys, scores, -jnp.inf)
        return scores, visible

    def dropped(self, x: jax.Array, index: jax.Array) -> jax.Array:
        """Drops weights, or their gradients, by their number among those of all keys."""
        rate = self.fixed.rate
        if not rate:
            return x
        rows = random_bits.numbers(x.shape[:-1]) * np.uint32(self.num_keys)
        at = (index * self.block + jnp.arange(self.block)).astype(jnp.uint32)
        keep = random_bits.kept(self.seed, rows[..., None] + at, rate)
        return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))
