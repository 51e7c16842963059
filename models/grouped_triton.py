"""Products of blocks of rows, each with its group's matrix, as Pallas kernels for GPUs: a Triton program for each tile of results.

XLA makes a product with all the matrices of `jax.lax.ragged_dot` on GPUs too (jax 0.10.2; `models.grouped_product`). Here a block
reads the one matrix that is its group's where that lies, so nothing is gathered and nothing multiplied in vain but what fills a
group's last block. Compiled for GPUs and interpreted on CPUs; never yet run on a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

BLOCK = 128
"""Rows of a block."""

COLUMNS = 128
"""Of the results that a program computes."""

_DEPTH_BYTES = 128
"""Of a row that a program reads at a time: three such tiles of either side wait in 96 KiB of an SM's own memory."""

_PARAMS = triton.CompilerParams(num_warps=8, num_stages=3)


def product(
    cut: jax.Array,
    kernels: jax.Array,
    group: jax.Array,
    used: jax.Array,
    *,
    transposed: bool,
    interpret: bool = False,
) -> jax.Array:
    """Every block times its group's kernel, or that kernel transposed.

    Args:
        cut: [blocks, BLOCK, I], or where `transposed` [blocks, BLOCK, O].
        kernels: [G, I, O] of the same dtype.
        group: [blocks] int32.
        used: [] how many blocks hold rows; of the others' products nothing is said.

    Returns: [blocks, BLOCK, O], or [blocks, BLOCK, I].
    """
    blocks, _, depth = cut.shape
    columns = kernels.shape[1 if transposed else 2]
    out = jax.ShapeDtypeStruct((blocks * BLOCK, columns), cut.dtype)
    body = functools.partial(_product, depth=depth, columns=columns, transposed=transposed)
    call = pl.pallas_call(
        body,
        out,
        grid=(blocks, pl.cdiv(columns, COLUMNS)),
        compiler_params=_PARAMS,
        interpret=interpret,
        name="grouped_product",
    )
    found = call(cut.reshape(blocks * BLOCK, depth), kernels, group, used.reshape(1))
    return found.reshape(blocks, BLOCK, columns)


def _product(
    cut: Any, kernels: Any, group: Any, used: Any, out: Any, *, depth: int, columns: int, transposed: bool
) -> None:
    block, tile = pl.program_id(0), pl.program_id(1)

    @pl.when(block < used[0])
    def _() -> None:
        mine = group[block]
        rows, right = pl.ds(block * BLOCK, BLOCK), pl.ds(tile * COLUMNS, COLUMNS)
        in_right = tile * COLUMNS + jnp.arange(COLUMNS) < columns
        step = _DEPTH_BYTES // cut.dtype.itemsize

        def add(n: jax.Array, total: jax.Array) -> jax.Array:
            inner = pl.ds(n * step, step)
            there = n * step + jnp.arange(step) < depth
            x = triton.load(cut.at[rows, inner], mask=there[None, :], other=0)
            if transposed:
                mask = in_right[:, None] & there[None, :]
                kernel = triton.load(kernels.at[mine, right, inner], mask=mask, other=0)
                return total + _dot(x, kernel, (1, 1))
            mask = there[:, None] & in_right[None, :]
            kernel = triton.load(kernels.at[mine, inner, right], mask=mask, other=0)
            return total + _dot(x, kernel, (1, 0))

        zeros = jnp.zeros((BLOCK, COLUMNS), _sums_in(cut.dtype))
        found = lax.fori_loop(0, pl.cdiv(depth, step), add, zeros)
        triton.store(out.at[rows, right], found.astype(out.dtype), mask=in_right[None, :])


def sums(cut: jax.Array, of_cut: jax.Array, ends: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Of each group its blocks' rows, transposed, times their gradients: the gradient of its kernel.

    Args:
        cut: [blocks, BLOCK, I].
        of_cut: [blocks, BLOCK, O] of the same dtype.
        ends: [G] int32: behind the last block of each group; one begins where that before it ends.

    Returns: [G, I, O].
    """
    blocks, _, inputs = cut.shape
    outputs = of_cut.shape[-1]
    flops = 2 * blocks * BLOCK * inputs * outputs
    bytes_accessed = (cut.size + of_cut.size + len(ends) * inputs * outputs) * cut.dtype.itemsize
    call = pl.pallas_call(
        functools.partial(_sums, inputs=inputs, outputs=outputs),
        jax.ShapeDtypeStruct((len(ends), inputs, outputs), cut.dtype),
        grid=(pl.cdiv(inputs, COLUMNS), pl.cdiv(outputs, COLUMNS), len(ends)),
        compiler_params=_PARAMS,
        interpret=interpret,
        # How often its loop goes round depends on the groups.
        cost_estimate=pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=bytes_accessed),
        name="grouped_sums",
    )
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])
    return call(cut.reshape(-1, inputs), of_cut.reshape(-1, outputs), starts, ends)


def _sums(cut: Any, of_cut: Any, starts: Any, ends: Any, out: Any, *, inputs: int, outputs: int) -> None:
    i, o, mine = (pl.program_id(n) for n in range(3))
    down, right = pl.ds(i * COLUMNS, COLUMNS), pl.ds(o * COLUMNS, COLUMNS)
    in_down = i * COLUMNS + jnp.arange(COLUMNS) < inputs
    in_right = o * COLUMNS + jnp.arange(COLUMNS) < outputs
    step = _DEPTH_BYTES // cut.dtype.itemsize
    per_block = BLOCK // step

    def add(n: jax.Array, total: jax.Array) -> jax.Array:
        rows = pl.ds(n * step, step)
        x = triton.load(cut.at[rows, down], mask=in_down[None, :], other=0)
        y = triton.load(of_cut.at[rows, right], mask=in_right[None, :], other=0)
        return total + _dot(x, y, (0, 0))

    zeros = jnp.zeros((COLUMNS, COLUMNS), _sums_in(cut.dtype))
    found = lax.fori_loop(starts[mine] * per_block, ends[mine] * per_block, add, zeros)
    mask = in_down[:, None] & in_right[None, :]
    triton.store(out.at[mine, down, right], found.astype(out.dtype), mask=mask)


def _dot(x: jax.Array, y: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    numbers = (((contracted[0],), (contracted[1],)), ((), ()))
    return lax.dot_general(x, y, numbers, preferred_element_type=_sums_in(x.dtype))


def _sums_in(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
