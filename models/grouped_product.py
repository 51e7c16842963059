"""Products of rows with matrices, of which each group of rows has its own.

`jax.lax.ragged_dot` is that, but everywhere it multiplies every row by all the matrices and keeps what is wanted (jax
0.10.2: eight times the work for eight experts). On CPUs rows go in blocks, each of one group, in a loop over the blocks that there
are; on GPUs in such blocks too, each a kernel's (`models.grouped_triton`); on TPUs through jax's own kernel of that kind,
"megablox" (Gale et al., arXiv:2211.15841).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mlperf_jax.platform import compiled_for

BLOCK = 64
"""Rows that are multiplied at once on CPUs, if there are so many; what a group's last block lacks is zeros."""

TILES = (512, 1024, 1024)
"""Rows, inputs and outputs that a TPU multiplies at once: as large as its memory on the chip takes them in two copies."""


def grouped_product(rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """[N, O] of rows [N, I], the first `sizes[0]` times `kernels[0]`, and so on.

    Args:
        rows: [N, I], group after group; what rows after the last group give means nothing.
        kernels: [G, I, O] of the same dtype.
        sizes: [G] int32, their sum at most N.
    """
    platform = compiled_for()
    if platform == "cpu":
        return _by_blocks(LOOPS._replace(size=min(BLOCK, len(rows))), rows, kernels, sizes)
    if platform == "gpu":
        return _by_blocks(triton(), rows, kernels, sizes)
    if platform == "tpu":
        return by_megablox(rows, kernels, sizes)
    return lax.ragged_dot(rows, kernels, sizes)


def by_megablox(
    rows: jax.Array, kernels: jax.Array, sizes: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """As `grouped_product`, by jax's kernel for TPUs, which takes whole tiles of rows and leaves the rest as it was."""
    from jax.experimental.pallas.ops.tpu.megablox import ops as megablox  # slow to import, and for TPUs alone

    most = -(-len(rows) // TILES[0]) * TILES[0]
    filled = jnp.pad(rows, ((0, most - len(rows)), (0, 0)))
    # Of rows after the last group neither what they give nor their gradient is ever written.
    filled = jnp.where((jnp.arange(most) < sizes.sum())[:, None], filled, 0)
    tiles = tuple(min(tile, size) for tile, size in zip(TILES, (most, *kernels.shape[1:]), strict=True))
    found = megablox.gmm(filled, kernels, sizes, rows.dtype, tiles, None, None, False, interpret)
    return found[: len(rows)]


class _Blocks(NamedTuple):
    """Where the rows of groups lie once each group fills whole blocks.

    Attributes:
        place: [N], of each row; of rows after the last group behind all blocks.
        group: [blocks], of each block; of what no row needs the last.
        ends: [G], behind the last block of each group.
        used: [] blocks that hold rows.
    """

    place: jax.Array
    group: jax.Array
    ends: jax.Array
    used: jax.Array


class _Form(NamedTuple):
    """How blocks are multiplied.

    Attributes:
        size: rows of a block.
        product: of blocks [blocks, size, I] with kernels [G, I, O], or [blocks, size, O] with them transposed.
        sums: [G, I, O] of blocks and their gradients: of each group its rows, transposed, times theirs.
    """

    size: int
    product: Callable[[jax.Array, jax.Array, _Blocks, bool], jax.Array]
    sums: Callable[[jax.Array, jax.Array, _Blocks], jax.Array]


def _blocks(num_rows: int, sizes: jax.Array, size: int) -> _Blocks:
    most = -(-num_rows // size) + len(sizes)
    ends = jnp.cumsum(sizes)
    block_ends = jnp.cumsum(-(-sizes // size))
    shift = size * jnp.concatenate([jnp.zeros(1, sizes.dtype), block_ends[:-1]]) - (ends - sizes)
    row = jnp.arange(num_rows)
    group = jnp.searchsorted(ends, row, side="right")
    place = jnp.where(row < ends[-1], row + shift[jnp.minimum(group, len(sizes) - 1)], most * size)
    of_block = jnp.searchsorted(block_ends, jnp.arange(most), side="right")
    return _Blocks(place, jnp.minimum(of_block, len(sizes) - 1), block_ends, block_ends[-1])


def _cut(rows: jax.Array, blocks: _Blocks, size: int) -> jax.Array:
    """[N, I] to [blocks, size, I]."""
    count = len(blocks.group)
    filled = jnp.zeros((count * size, rows.shape[-1]), rows.dtype).at[blocks.place].set(rows, mode="drop")
    return filled.reshape(count, size, -1)


def _joined(cut: jax.Array, blocks: _Blocks) -> jax.Array:
    """The reverse; zeros for rows after the last group."""
    return cut.reshape(-1, cut.shape[-1]).at[blocks.place].get(mode="fill", fill_value=0)


def _looped_product(cut: jax.Array, kernels: jax.Array, blocks: _Blocks, transposed: bool) -> jax.Array:
    def one(index: jax.Array, out: jax.Array) -> jax.Array:
        kernel = kernels[blocks.group[index]]
        return out.at[index].set(cut[index] @ (kernel.T if transposed else kernel))

    out = jnp.zeros((*cut.shape[:2], kernels.shape[1 if transposed else 2]), cut.dtype)
    return lax.fori_loop(0, blocks.used, one, out)


def _looped_sums(cut: jax.Array, of_cut: jax.Array, blocks: _Blocks) -> jax.Array:
    def one(index: jax.Array, total: jax.Array) -> jax.Array:
        return total.at[blocks.group[index]].add(cut[index].T @ of_cut[index])

    zeros = jnp.zeros((len(blocks.ends), cut.shape[-1], of_cut.shape[-1]), cut.dtype)
    return lax.fori_loop(0, blocks.used, one, zeros)


LOOPS = _Form(BLOCK, _looped_product, _looped_sums)
"""One block after the other."""


@functools.cache
def triton(*, interpret: bool = False) -> _Form:
    """All blocks at once, as kernels of a GPU's."""
    from models import grouped_triton  # slow to import, and for GPUs alone

    def product(cut: jax.Array, kernels: jax.Array, blocks: _Blocks, transposed: bool) -> jax.Array:
        group, used = blocks.group.astype(jnp.int32), blocks.used.astype(jnp.int32)
        return grouped_triton.product(cut, kernels, group, used, transposed=transposed, interpret=interpret)

    def sums(cut: jax.Array, of_cut: jax.Array, blocks: _Blocks) -> jax.Array:
        return grouped_triton.sums(cut, of_cut, blocks.ends.astype(jnp.int32), interpret=interpret)

    return _Form(grouped_triton.BLOCK, product, sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_blocks(form: _Form, rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    blocks = _blocks(len(rows), sizes, form.size)
    return _joined(form.product(_cut(rows, blocks, form.size), kernels, blocks, False), blocks)


def _forward(form: _Form, rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> tuple[jax.Array, Any]:
    return _by_blocks(form, rows, kernels, sizes), (rows, kernels, sizes)


def _backward(form: _Form, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, kernels, sizes = kept
    blocks = _blocks(len(rows), sizes, form.size)
    cut, of_cut = (_cut(x, blocks, form.size) for x in (rows, gradient))
    of_rows = _joined(form.product(of_cut, kernels, blocks, True), blocks)
    return of_rows, form.sums(cut, of_cut, blocks), None


_by_blocks.defvjp(_forward, _backward)
