"""The keys from which a model's parameters are drawn: NNX's, made many at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

AT_ONCE = 64


class DrawingKeys(nnx.Rngs):
    """`nnx.Rngs` of a key, whose stream "params" gives the same keys.

    The n-th is the hash of its key and n. NNX computes one whenever a parameter asks, each in a loop of its own, which
    XLA compiles anew: a fifth of what it takes to compile the drawing of small parameters. Here a loop computes 64.
    """

    def __init__(self, key: jax.Array) -> None:
        super().__init__(key)
        self._keys = _keys(key)

    def params(self) -> jax.Array:
        """The next key."""
        return next(self._keys)


def _keys(key: jax.Array) -> Iterator[jax.Array]:
    for first in itertools.count(0, AT_ONCE):
        numbers = jnp.arange(first, first + AT_ONCE, dtype=jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        for index in range(AT_ONCE):
            yield keys[index]
