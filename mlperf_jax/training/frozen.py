"""A fingerprint of what a run keeps frozen, by which a resumed run knows that it has the same."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(tree: Any) -> str:
    """Sixteen hexadecimal digits that any changed bit changes, wherever the arrays lie; "" of nothing.

    Two sums, modulo 2**32, of each array's words times odd numbers that depend on the place: a device adds up
    its own part. It guards against mistakes, not against people.

    Args:
        tree: of arrays.
    """
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return ""
    # Arrays of one shape share a program; one of all arrays would be long.
    parts = [_sums(leaf, np.uint32(i + 1)) for i, leaf in enumerate(leaves)]
    return "".join(f"{int(value):08x}" for value in functools.reduce(jnp.add, parts))


@jax.jit
def _sums(leaf: jax.Array, number: jax.Array) -> jax.Array:
    words = _words(leaf)
    place = jnp.full(words.shape, number, jnp.uint32)
    for d in range(words.ndim):
        place = _mixed(place ^ jax.lax.broadcasted_iota(jnp.uint32, words.shape, d) * jnp.uint32(0x9E3779B1))
    other = _mixed(place ^ jnp.uint32(0x85EBCA6B))
    return jnp.stack(
        [(words * (place | 1)).sum(dtype=jnp.uint32), (words * (other | 1)).sum(dtype=jnp.uint32)]
    )


def _words(x: jax.Array) -> jax.Array:
    """The bits of an array as uint32, one word or more an element."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of uint32 whose low bits depend on all (Wellons, "hash prospector", lowbias32)."""
    x ^= x >> 16
    x *= jnp.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
