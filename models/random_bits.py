"""Random bits that are a function of a seed and of an element's own number, and dropout by them.

jax's threefry spends some hundred integer operations on a word, and a large Transformer drops 1.3 billion
elements a step. Here a word is the seed and the element's number through two multiplications, the
finaliser of a hash (C. Wellons, "lowbias32", 2018, public domain). It is computed where it is needed,
inside whatever reads it, and again in the backward pass, so that no mask lies in memory; it is the same
on every platform, layout and split of the work: whoever computes a part of an array, a kernel for one
block of scores among them, finds the bits of the whole.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

NAME = "counter"
"""What logs call them."""

Seed = jax.Array | Sequence[jax.Array]
"""Two uint32."""


def seed_of(key: jax.Array) -> jax.Array:
    """[2] uint32, of a key for one array: drawn, so that keys that are alike give seeds that are not."""
    return jax.random.bits(key, (2,), jnp.uint32)


def words(seed: Seed, number: jax.Array) -> jax.Array:
    """A uint32 of each element's number, uint32 of any shape."""
    x = number ^ seed[0]
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = x ^ seed[1]
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def kept(seed: Seed, number: jax.Array, rate: float) -> jax.Array:
    """Whether each element stays, bool: of 2^32 words the first `rate` of them drop theirs."""
    return words(seed, number) >= np.uint32(round(rate * 2**32))


def numbers(shape: Sequence[int]) -> jax.Array:
    """The number of every element of an array in row-major order, modulo 2^32: uint32."""
    total, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        total = total + along * np.uint32(stride % 2**32)
        stride *= shape[axis]
    return total


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and scales up the others; without a key it changes nothing."""
    return x if key is None else dropped(x, rate, seed_of(key))


def dropped(x: jax.Array, rate: float, seed: jax.Array) -> jax.Array:
    """The same by the words of a seed. Nothing is kept for the backward pass but the seed."""
    return _dropped(x, seed, rate) if rate else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropped(x: jax.Array, seed: jax.Array, rate: float) -> jax.Array:
    return jnp.where(kept(seed, numbers(x.shape), rate), x / (1 - rate), jnp.zeros((), x.dtype))


def _forward(x: jax.Array, seed: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    return _dropped(x, seed, rate), seed


def _backward(rate: float, seed: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return _dropped(gradient, seed, rate), None


_dropped.defvjp(_forward, _backward)


def dropped_relu(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """A ReLU, and dropout of it. Its gradient flows where something came out: no more is kept."""
    rate = 0.0 if key is None else rate
    return _dropped_relu(x, jnp.zeros(2, jnp.uint32) if key is None else seed_of(key), rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropped_relu(x: jax.Array, seed: jax.Array, rate: float) -> jax.Array:
    return dropped(jax.nn.relu(x), rate, seed)


def _relu_forward(x: jax.Array, seed: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    y = _dropped_relu(x, seed, rate)
    return y, y


def _relu_backward(rate: float, y: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return jnp.where(y > 0, gradient / (1 - rate), jnp.zeros((), gradient.dtype)), None


_dropped_relu.defvjp(_relu_forward, _relu_backward)
