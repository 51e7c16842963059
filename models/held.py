"""Kernels as they are held to be served: turned, in the compute dtype or in int8.

int8 is of weights alone, symmetric, with one scale for each output (as in LLM.int8's vector-wise form, Dettmers et al.,
arXiv:2208.07339, but for weights only): what is multiplied is in the compute dtype, and the scale goes to the output. A
kernel's number is off by half its output's scale at most, so an output by half of that times the sum of the inputs' magnitudes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from mlperf_jax.platform import compiled_for

WEIGHTS = ("auto", "int8")
"""What kernels can be held in: the compute dtype, which follows the platform (bfloat16 on accelerators), or int8."""

_LARGEST = 127
_FEW_ROWS, _FEW_OUTPUTS = 64, 1 << 18


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Held:
    """A kernel.

    Attributes:
        turned: [O, I], or a table of O rows.
        scale: [O] float32 where `turned` is int8, else None.
    """

    turned: jax.Array
    scale: jax.Array | None = None

    def product(self, x: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
        """[..., I] times the kernel: [..., O], in the dtype of x or another."""
        kernel, rows = self.turned.astype(x.dtype), x.reshape(-1, x.shape[-1])
        out = jnp.dtype(dtype or x.dtype)
        few = 1 < len(rows) <= _FEW_ROWS and len(rows) * len(kernel) <= _FEW_OUTPUTS
        if few and compiled_for() == "cpu":
            y = _few_rows(rows, kernel, out)
        else:
            y = lax.dot_general(rows, kernel, (((1,), (1,)), ((), ())), preferred_element_type=out)
        if self.scale is not None:
            y = (y * self.scale.astype(jnp.promote_types(out, jnp.float32))).astype(out)
        return y.reshape(*x.shape[:-1], -1)

    def rows(self, numbers: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Rows [...] of the table: [..., I]."""
        rows = self.turned[numbers]
        if self.scale is None:
            return rows.astype(dtype)
        return (rows * self.scale[numbers][..., None]).astype(dtype)


def _few_rows(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """[S, I] times [O, I]: [S, O].

    XLA:CPU packs a product's second operand before it multiplies. Of few rows that had better be the rows than the kernel: a tenth of
    the time of a step of 64 (benchmarks/NOTES.md), but not where what comes out is turned back outside of the core's cache. Without
    barriers XLA turns the product around again.
    """
    turned = lax.optimization_barrier(x.T)
    y = lax.dot_general(kernel, turned, (((1,), (0,)), ((), ())), preferred_element_type=dtype)
    return lax.optimization_barrier(y).T


def hold(turned: jax.Array, weights: str, dtype: DTypeLike) -> Held:
    """A kernel [O, I] as `weights` says, one of `WEIGHTS`.

    Raises:
        ValueError: it says something else.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r} are none of {', '.join(WEIGHTS)}")
    if weights == "auto":
        return Held(turned.astype(dtype))
    turned = turned.astype(jnp.promote_types(turned.dtype, jnp.float32))
    scale = jnp.abs(turned).max(-1) / _LARGEST
    scale = jnp.where(scale > 0, scale, 1).astype(jnp.float32)
    return Held(jnp.round(turned / scale[:, None]).astype(jnp.int8), scale)
