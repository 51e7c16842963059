"""The one attention function: what may be seen, by which implementation it is computed, and how it is split.

    plain       all scores in memory [B, H, L, M]: for short rows, for float64, for what no other can
    blockwise   blocks of keys one after the other, softmax as it goes; the backward pass computes scores again
    kernel      this project's Pallas kernel for TPUs, all keys of a row in on-chip memory
    splash      jax's Pallas kernel for TPUs, of long rows without dropout
    cudnn       cuDNN's, through jax, on NVIDIA GPUs without dropout

All give what `plain` gives, up to rounding; scores are at least float32. Softmax weights are dropped by
`models.random_bits`, by their number in the whole array [B, H, L, M], so that all that know dropout drop
the same. What an implementation cannot do it refuses with a ValueError; "auto" takes another and says so.
Off a TPU the two Pallas kernels run as plain jax, slowly: for tests.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.platform import compiled_for
from models import attention_kernel, attention_library, random_bits
from models.attention_blockwise import blockwise
from models.attention_kernel import LANES
from models.attention_mask import EVERYTHING, MASKED, Mask

CHOICES = ("auto", "plain", "blockwise", "kernel", "splash", "cudnn")

BLOCKWISE_FROM = 256
"""Queries and keys from which on "auto" computes blockwise where no kernel can: on CPU in 0.6 of the time, and of 2,048 in 0.3."""

BLOCK = 256
"""Keys of a block."""

_log = logging.getLogger(__name__)


def choose(
    choice: str,
    *,
    queries: int,
    keys: int,
    width: int,
    dtype: DTypeLike,
    dropout: bool,
    mask: Mask = EVERYTHING,
    platform: str = "",
    split: bool = False,
) -> str:
    """The implementation that one of `CHOICES` means.

    Args:
        choice: one of `CHOICES`.
        queries, keys, width: L, M and K.
        dtype: of what is multiplied.
        dropout: whether weights are dropped.
        mask: who sees what; its arrays may be of any shape.
        platform: by default the one in use.
        split: whether a layout splits the queries of a row over devices.

    Raises:
        ValueError: there is no such choice, or it cannot do this.
    """
    if choice not in CHOICES:
        raise ValueError(f"attention {choice!r} is none of {', '.join(CHOICES)}")
    platform = platform or compiled_for() or jax.default_backend()
    fast = {"tpu": ("kernel", "splash"), "gpu": ("cudnn",)}.get(platform, ())
    slow = "blockwise" if min(queries, keys) >= BLOCKWISE_FROM else "plain"
    for name in (*fast, slow) if choice == "auto" else (choice,):
        refusal = _refusal(
            name,
            queries,
            keys,
            width,
            jnp.dtype(dtype),
            dropout=dropout,
            mask=mask,
            platform=platform,
            split=split,
        )
        if refusal is None:
            return name
        if choice != "auto":
            raise ValueError(f"attention {name!r} {refusal}; use 'auto'")
        _say(f"attention {name!r} is not used, as it {refusal}")
    raise AssertionError("plain and blockwise refuse nothing")


def _refusal(
    name: str,
    queries: int,
    keys: int,
    width: int,
    dtype: np.dtype,
    *,
    dropout: bool,
    mask: Mask,
    platform: str,
    split: bool,
) -> str | None:
    """Why an implementation cannot do it, or None."""
    if split and name not in ("plain", "blockwise"):
        return "takes whole rows, and the layout splits them"
    if name in ("kernel", "splash") and (queries % LANES or keys % LANES):
        return f"takes multiples of {LANES} queries and keys, not {queries} and {keys}"
    if name in ("kernel", "splash") and dtype.itemsize > 4:
        return f"computes in float32 at most, not in {dtype}"
    if name == "kernel" and keys > attention_kernel.MAX_KEYS:
        return f"takes up to {attention_kernel.MAX_KEYS} keys, not {keys}"
    if name in ("splash", "cudnn") and dropout:
        return "has no dropout that others could repeat"
    if name == "cudnn" and platform != "gpu":
        return f"is not there on {platform}"
    if name == "cudnn" and (dtype.itemsize != 2 or width > 128 or width % 8):
        return f"takes 16-bit heads of multiples of 8 up to 128, not {dtype} of {width}"
    if name == "cudnn" and mask.window is not None and not mask.causal:
        return "knows windows of causal attention only"
    return None


@functools.lru_cache
def _say(sentence: str) -> None:
    """Once, on the log."""
    _log.warning("%s", sentence)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask = EVERYTHING,
    *,
    scale: float | None = None,
    rate: float = 0.0,
    key: jax.Array | None = None,
    choice: str = "auto",
) -> jax.Array:
    """What queries find in values: [B, L, H, K] in the dtype of the values.

    Args:
        q: [B, L, H, K].
        k, v: [B, M, G, K], where G divides H: head h looks at key head h // (H / G).
        mask: who sees what.
        scale: of scores; by default 1 / sqrt(K).
        rate: of softmax weights that are dropped; needs `key`.
        key: for dropout; None for none.
        choice: one of `CHOICES`.

    Raises:
        ValueError: the heads do not divide, or the choice cannot do this.
    """
    (heads, width), key_heads = q.shape[2:], k.shape[2]
    if heads % key_heads:
        raise ValueError(f"{key_heads} heads of keys do not divide {heads} of queries")
    rate = rate if key is not None else 0.0
    scale = width**-0.5 if scale is None else scale
    name = choose(
        choice,
        queries=q.shape[1],
        keys=k.shape[1],
        width=width,
        dtype=v.dtype,
        dropout=rate > 0,
        mask=mask,
        split=_splits_queries(q),
    )
    seed = random_bits.seed_of(key) if key is not None else jnp.zeros(2, jnp.uint32)
    if name == "plain":
        return _plain(q, k, v, mask, scale=scale, rate=rate, seed=seed)
    if name == "blockwise":
        return blockwise(q, k, v, mask, scale=scale, rate=rate, seed=seed, block=BLOCK)
    interpret = (compiled_for() or jax.default_backend()) != "tpu"

    def local(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *seed_and_first: jax.Array) -> jax.Array:
        if name == "splash":
            return attention_library.splash(q, k, v, mask, scale=scale, interpret=interpret)
        if name == "cudnn":
            return attention_library.cudnn(q, k, v, mask, scale=scale)
        options = attention_kernel.Options(
            width=width,
            group=q.shape[2] // k.shape[2],
            causal=mask.causal,
            window=mask.window,
            segments=mask.segments,
            scale=scale,
            rate=rate,
            heads=heads,
            interpret=interpret,
        )
        return attention_kernel.attend(options, q, k, v, mask, *seed_and_first)

    return _on_each_device(local, q, k, v, mask, seed)


def _plain(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, scale: float, rate: float, seed: jax.Array
) -> jax.Array:
    batch, queries, heads, width = q.shape
    keys, key_heads = k.shape[1:3]
    q = q.reshape(batch, queries, key_heads, heads // key_heads, width)
    dtype = jnp.promote_types(v.dtype, jnp.float32)
    scores = jnp.einsum("blgrk,bmgk->bgrlm", q, k, preferred_element_type=dtype)
    if scale != 1:
        scores = scores * jnp.asarray(scale, dtype)
    visible = mask.visible(jnp.arange(queries), jnp.arange(keys), mask.key_segment)
    if visible is not None:
        scores = jnp.where(visible[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    weights = random_bits.dropped(weights, rate, seed)
    return jnp.einsum("bgrlm,bmgk->blgrk", weights, v).reshape(batch, queries, heads, width)


def _on_each_device(
    function: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, seed: jax.Array
) -> jax.Array:
    """Calls what the partitioner cannot look into, on each device's own rows and heads.

    The function takes q, k, v, the mask, the seed, and which row and which head of all its first are.
    """
    layout = layouts.active()
    if layout is None or layout.mesh.size == 1:
        zero = jnp.zeros((), jnp.int32)
        return function(q, k, v, mask, seed, zero, zero)
    rows, of_queries = _carriers(layout, q)
    heads = of_queries if _carriers(layout, k)[1] == of_queries else None
    arrays, segments = PartitionSpec(rows, None, heads), PartitionSpec(rows)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, seed: jax.Array, *ids: jax.Array) -> jax.Array:
        own = dataclasses.replace(mask, query_segment=ids[0], key_segment=ids[1]) if ids else mask
        first_row, first_head = (
            layouts.index_along(layout, rows) * q.shape[0],
            layouts.index_along(layout, heads) * q.shape[2],
        )
        return function(q, k, v, own, seed, first_row, first_head)

    ids = (mask.query_segment, mask.key_segment) if mask.segments else ()
    mapped = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(arrays, arrays, arrays, PartitionSpec(), *[segments] * len(ids)),
        out_specs=arrays,
        check_vma=False,
    )
    return mapped(q, k, v, seed, *ids)


def _splits_queries(q: jax.Array) -> bool:
    """Whether the layout in use splits the positions of [B, L, H, K]."""
    layout = layouts.active()
    if layout is None:
        return False
    return (*layout.spec(q.shape, ("batch", "position", "heads", None)), None, None)[1] is not None


def _carriers(layout: Layout, x: jax.Array) -> tuple[Any, Any]:
    """What carries rows and heads of [B, L, H, K]."""
    spec = (*layout.spec(x.shape, ("batch", None, "heads", None)), None, None, None)
    return spec[0], spec[2]
