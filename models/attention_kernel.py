"""Attention of moderately long rows as one Pallas kernel for TPUs: a block of queries against all keys at once.

All keys of some heads lie in on-chip memory together, so scores [queries, keys] exist there only, softmax
needs no second look, and the backward pass computes them again from queries and keys: nothing else is
kept. Heads lie side by side in the last axis, as products write them; a program takes as many as fill
whole tiles of 128.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from models import random_bits
from models.attention_mask import MASKED, Mask

LANES = 128
MAX_KEYS = 2048
"""Scores of one block of queries and all keys, in float32, several times over, are to fit 16 MiB."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is fixed when the kernel is built.

    Attributes:
        width: K, of a head.
        group: query heads to a key head.
        causal, window: as of `models.attention_mask.Mask`.
        segments: whether they are looked at.
        scale: of scores.
        rate: of dropout; 0 for none.
        heads: H of the whole array, of which a device may hold a part.
        interpret: whether to run it as plain jax, where there is no TPU.
    """

    width: int
    group: int
    causal: bool
    window: int | None
    segments: bool
    scale: float
    rate: float
    heads: int
    interpret: bool


def attend(
    options: Options,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    seed: jax.Array,
    first_row: jax.Array,
    first_head: jax.Array,
) -> jax.Array:
    """[B, L, H, K] of queries [B, L, H, K], keys and values [B, M, G, K]; L and M are multiples of 128.

    `seed` is two uint32; `first_row` and `first_head` say where in the whole array the first ones here are.
    """
    segments = [
        jnp.zeros(x.shape[:2], jnp.int32) if ids is None else ids.astype(jnp.int32)
        for x, ids in ((q, mask.query_segment), (k, mask.key_segment))
    ]
    scalars = jnp.stack([*jax.lax.bitcast_convert_type(seed, jnp.int32), first_row, first_head])
    flat = [x.reshape(*x.shape[:2], -1) for x in (q, k, v)]
    return _attend(options, *flat, *segments, scalars).reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: Options, *args: jax.Array) -> jax.Array:
    """Of queries [B, L, H K], keys and values [B, M, G K], segments [B, L] and [B, M], and the scalars."""
    return _forward(options, *args)[0]


def _forward(options: Options, *args: jax.Array) -> tuple[jax.Array, Any]:
    q, k, _, _, _, _ = args
    call = _Call(options, q, k)
    out = call(_forward_kernel, [call.queries], [q], products=2)(*call.arranged(args))
    return out[0], args


def _backward(options: Options, args: Any, gradient: jax.Array) -> tuple[Any, ...]:
    q, k, v, _, _, _ = args
    call = _Call(options, q, k)
    kernel = call(
        _backward_kernel, [call.queries, call.keys, call.keys], [q, k, v], products=5, gradient=True
    )
    return *kernel(*call.arranged(args), gradient), None, None, None


_attend.defvjp(_forward, _backward)


class _Call:
    """How the work is cut: programs over rows, groups of heads, and blocks of queries."""

    def __init__(self, options: Options, q: jax.Array, k: jax.Array) -> None:
        self.options = options
        self.batch, self.length, _ = q.shape
        self.num_keys = k.shape[1]
        key_heads = k.shape[2] // options.width
        scores = self.block * self.num_keys
        self.key_heads = _heads_together(key_heads, options, self.num_keys * k.dtype.itemsize, scores)
        self.grid = (self.batch, key_heads // self.key_heads, self.length // self.block)
        self.key_width = self.key_heads * options.width
        self.queries = pl.BlockSpec(
            (1, self.block, self.key_width * options.group), lambda b, h, i, *_: (b, i, h)
        )
        self.keys = pl.BlockSpec((1, self.num_keys, self.key_width), lambda b, h, i, *_: (b, 0, h))

    @property
    def block(self) -> int:
        """Of queries: so many that scores are a quarter of a mebi."""
        block = min(self.length, max(LANES, 2**18 // self.num_keys))
        while self.length % block:
            block -= LANES
        return block

    def arranged(self, args: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Scalars first; segments of queries down the rows of a tile and those of keys along them."""
        q, k, v, query_segment, key_segment, scalars = args
        return scalars, q, k, v, query_segment[:, :, None], key_segment[:, None, :]

    def __call__(
        self,
        kernel: Any,
        outputs: list[pl.BlockSpec],
        like: list[Any],
        *,
        products: int,
        gradient: bool = False,
    ) -> Any:
        query_segment = pl.BlockSpec((1, self.block, 1), lambda b, h, i, *_: (b, i, 0))
        key_segment = pl.BlockSpec((1, 1, self.num_keys), lambda b, h, i, *_: (b, 0, 0))
        inputs = [self.queries, self.keys, self.keys, query_segment, key_segment]
        heads = self.grid[1] * self.key_heads * self.options.group
        scores = self.batch * heads * self.length * self.num_keys
        moved = sum(np.prod(x.shape) * x.dtype.itemsize for x in like)
        return pl.pallas_call(
            functools.partial(kernel, self.options, self.key_heads),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=self.grid,
                in_specs=inputs + ([self.queries] if gradient else []),
                out_specs=outputs,
                scratch_shapes=[pltpu.VMEM((self.num_keys, self.key_width), jnp.float32)] * 2 * gradient,
            ),
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * scores * self.options.width,
                transcendentals=scores,
                bytes_accessed=int(2 * moved),
            ),
            interpret=self.options.interpret,
            name="attention_backward" if gradient else "attention_forward",
        )


def _heads_together(heads: int, options: Options, column_bytes: int, scores: int) -> int:
    """Of key heads, of which a column of all keys takes so many bytes: the most that fill whole tiles with up to 8
    heads of queries, half a mebibyte of keys, and a mebi of scores, of which a head of queries has so many; else as few as
    can be. Eight heads of 512 x 512 scores with dropout took 20 of the 16 MiB that v5e's compiler allows the backward pass."""
    whole = [n for n in range(1, heads + 1) if heads % n == 0 and n * options.width % LANES == 0]
    few = [
        n
        for n in whole
        if n * options.group <= 8
        and n * options.width * column_bytes <= 2**19
        and n * options.group * scores <= 2**20
    ]
    return max(few) if few else min(whole, default=heads)


def _scores(options: Options, q: jax.Array, k: jax.Array, visible: jax.Array | None) -> jax.Array:
    scores = jax.lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    if options.scale != 1:
        scores = scores * options.scale
    return scores if visible is None else jnp.where(visible, scores, MASKED)


def _visible(options: Options, query_segment: Any, key_segment: Any, shape: tuple[int, int]) -> Any:
    """[queries, keys] bool of a block; None where all see all."""
    parts = []
    if options.segments:
        parts.append(query_segment[0] == key_segment[0])
    if options.causal or options.window is not None:
        row = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + pl.program_id(2) * shape[0]
        behind = row - jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        if options.causal:
            parts.append(behind >= 0)
        if options.window is not None:
            parts.append(behind < options.window)
            if not options.causal:
                parts.append(behind > -options.window)
    return functools.reduce(jnp.logical_and, parts) if parts else None


def _weights(options: Options, q: Any, k: Any, visible: Any) -> jax.Array:
    scores = _scores(options, q, k, visible)
    weights = jnp.exp(scores - scores.max(1, keepdims=True))
    return weights * (1 / weights.sum(1, keepdims=True))


def _heads(options: Options, key_heads: int) -> Any:
    """(head within the program, lanes of its queries, lanes of its keys)."""
    width = options.width
    for head in range(key_heads * options.group):
        at = head // options.group
        yield head, slice(head * width, (head + 1) * width), slice(at * width, (at + 1) * width)


def _kept(
    options: Options, key_heads: int, scalars: Any, head: int, shape: tuple[int, int], length: int
) -> Any:
    """Which weights of a head stay: numbers count rows, heads, queries and keys of the whole array."""
    queries, keys = shape
    row = scalars[2] + pl.program_id(0)
    of_head = scalars[3] + pl.program_id(1) * (key_heads * options.group) + head
    first = ((row * options.heads + of_head) * length + pl.program_id(2) * queries) * keys
    down, along = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    number = jax.lax.bitcast_convert_type(down * keys + along + first, jnp.uint32)
    seed = [jax.lax.bitcast_convert_type(scalars[n], jnp.uint32) for n in range(2)]
    return random_bits.kept(seed, number, options.rate)


def _forward_kernel(
    options: Options, key_heads: int, scalars: Any, q: Any, k: Any, v: Any, qs: Any, ks: Any, out: Any
) -> None:
    shape = q.shape[1], k.shape[1]
    visible = _visible(options, qs, ks, shape)
    for head, of_queries, of_keys in _heads(options, key_heads):
        weights = _weights(options, q[0, :, of_queries], k[0, :, of_keys], visible)
        if options.rate:
            keep = _kept(options, key_heads, scalars, head, shape, pl.num_programs(2) * shape[0])
            weights = jnp.where(keep, weights * (1 / (1 - options.rate)), 0.0)
        value = v[0, :, of_keys]
        out[0, :, of_queries] = jnp.dot(
            weights.astype(value.dtype), value, preferred_element_type=jnp.float32
        ).astype(out.dtype)


def _backward_kernel(
    options: Options,
    key_heads: int,
    scalars: Any,
    q: Any,
    k: Any,
    v: Any,
    qs: Any,
    ks: Any,
    g: Any,
    dq: Any,
    dk: Any,
    dv: Any,
    all_dk: Any,
    all_dv: Any,
) -> None:
    shape = q.shape[1], k.shape[1]
    visible = _visible(options, qs, ks, shape)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        all_dk[...] = jnp.zeros(all_dk.shape, all_dk.dtype)
        all_dv[...] = jnp.zeros(all_dv.shape, all_dv.dtype)

    first = (((0,), (0,)), ((), ()))
    last = (((1,), (1,)), ((), ()))
    for head, of_queries, of_keys in _heads(options, key_heads):
        query, key, value, gradient = (
            q[0, :, of_queries],
            k[0, :, of_keys],
            v[0, :, of_keys],
            g[0, :, of_queries],
        )
        weights = _weights(options, query, key, visible)
        of_weights = jax.lax.dot_general(gradient, value, last, preferred_element_type=jnp.float32)
        used = weights
        if options.rate:
            keep = _kept(options, key_heads, scalars, head, shape, pl.num_programs(2) * shape[0])
            used = jnp.where(keep, weights * (1 / (1 - options.rate)), 0.0)
            of_weights = jnp.where(keep, of_weights * (1 / (1 - options.rate)), 0.0)
        all_dv[:, of_keys] += jax.lax.dot_general(
            used.astype(value.dtype), gradient, first, preferred_element_type=jnp.float32
        )
        of_scores = weights * (of_weights - (weights * of_weights).sum(1, keepdims=True))
        if visible is not None:  # of queries that see no key, where all weigh the same
            of_scores = jnp.where(visible, of_scores, 0.0)
        if options.scale != 1:
            of_scores = of_scores * options.scale
        of_scores = of_scores.astype(key.dtype)
        dq[0, :, of_queries] = jnp.dot(of_scores, key, preferred_element_type=jnp.float32).astype(dq.dtype)
        all_dk[:, of_keys] += jax.lax.dot_general(of_scores, query, first, preferred_element_type=jnp.float32)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        dk[0] = all_dk[...].astype(dk.dtype)
        dv[0] = all_dv[...].astype(dv.dtype)
