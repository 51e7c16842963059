"""Attention by kernels that others keep: splash attention for TPUs, from jax itself, and cuDNN's for NVIDIA GPUs.

Both take one device's arrays, as `models.attention_function` cuts them, and know no dropout.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from mlperf_jax.errors import UserError, first_line
from mlperf_jax.parallel import layout as layouts
from models.attention_mask import Mask

BLOCK = 1024
"""Queries, and keys, of a block of splash attention. Its backward pass gives a part of the queries' gradient for each block of keys,
which are added up after it."""
LARGE_BLOCK, _LARGE_BLOCK_KIB = 2048, 65_536
"""Where a kernel may take so much on-chip memory, as it asks for 36 MiB."""


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, scale: float, interpret: bool
) -> jax.Array:
    """[B, L, H, K] of queries [B, L, H, K], keys and values [B, M, G, K]; L and M are multiples of 128.

    What causality and windows hide is skipped, block by block.
    """
    shape = q.shape[1], k.shape[1]
    block = math.gcd(math.gcd(*shape), _block())
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes: dict[str, Any] = dict.fromkeys(names, block)
    with jax.ensure_compile_time_eval():
        function = kernels.make_splash_mha(
            mask=masks.MultiHeadMask([_positions(shape, mask)] * q.shape[2]),
            block_sizes=kernels.BlockSizes(**sizes, use_fused_bwd_kernel=True),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )

    def row(q: jax.Array, k: jax.Array, v: jax.Array, *segments: jax.Array) -> jax.Array:
        q, k, v = (x.swapaxes(0, 1) for x in (q, k, v))
        ids = kernels.SegmentIds(*segments) if segments else None
        return function(q, k, v, segment_ids=ids).swapaxes(0, 1)

    segments = (mask.query_segment, mask.key_segment) if mask.segments else ()
    # By the scope `plan` tells layers with windows from others.
    with jax.named_scope(f"window_{mask.window}") if mask.window else contextlib.nullcontext():
        return jax.vmap(row)(q * jnp.asarray(scale, q.dtype), k, v, *segments).astype(v.dtype)


def _block() -> int:
    layout = layouts.active()
    chip = layout.chip if layout else None
    return LARGE_BLOCK if chip and chip.scoped_vmem_kib >= _LARGE_BLOCK_KIB else BLOCK


def _positions(shape: tuple[int, int], mask: Mask) -> Any:
    if mask.window is not None:
        side = mask.window - 1
        return masks.LocalMask(shape, (side, 0 if mask.causal else side), 0)
    return masks.CausalMask(shape) if mask.causal else masks.FullMask(shape)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, scale: float) -> jax.Array:
    """The same. Segments become a mask [B, 1, L, M], which lies in memory, once for all heads.

    Raises:
        UserError: cuDNN is not installed; jax looks for it where this is traced.
    """
    seen = None
    if mask.query_segment is not None and mask.key_segment is not None:
        seen = mask.query_segment[:, None, :, None] == mask.key_segment[:, None, None]
    window = None
    if mask.window is not None:
        window = (mask.window - 1, 0 if mask.causal else mask.window - 1)
    try:
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=seen,
            scale=scale,
            is_causal=mask.causal,
            local_window_size=window,
            implementation="cudnn",
        )
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise UserError(
            f"Attention on GPUs is cuDNN's ({first_line(error)}); install it with: pip install -e '.[cuda]' -c constraints.txt"
        ) from error
