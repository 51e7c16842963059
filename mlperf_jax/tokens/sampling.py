"""The next token of each text, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.decoding.largest import first_largest

FAILED = -1
"""In place of a token where logits are no numbers."""

OnEitherSide = Any
"""An array of numpy's on its way to the device, or of jax's there."""


class Wishes(NamedTuple):
    """How the tokens of B texts are to be chosen, as `mlperf_jax.tokens.requests.Request` has it.

    Attributes:
        temperature, top_p: [B] float32.
        seed: [B] uint32.
        min_tokens: [B] int32.
    """

    temperature: OnEitherSide
    top_p: OnEitherSide
    seed: OnEitherSide
    min_tokens: OnEitherSide


def next_tokens(logits: jax.Array, wishes: Wishes, made: jax.Array, ends: Sequence[int]) -> jax.Array:
    """Tokens [B] int32, `FAILED` where a text has none.

    What is drawn depends on logits, seed and the number of the token, and on no other text.

    Args:
        logits: [B, V], at least float32.
        wishes: of each text.
        made: [B] int32, tokens that each has got so far.
        ends: tokens that end a text.
    """
    early = (made < wishes.min_tokens)[:, None]
    ending = jnp.isin(jnp.arange(logits.shape[1]), np.asarray(ends, np.int32))
    logits = jnp.where(early & ending, -jnp.inf, logits)
    drawn = jax.lax.cond(
        jnp.any(wishes.temperature > 0),
        lambda: jnp.where(wishes.temperature > 0, _drawn(logits, wishes, made), first_largest(logits)),
        lambda: first_largest(logits),
    )
    return jnp.where(jnp.isfinite(logits.max(-1)), drawn, FAILED).astype(jnp.int32)


def _drawn(logits: jax.Array, wishes: Wishes, made: jax.Array) -> jax.Array:
    """With the largest of logits and Gumbel's noise, which is a draw from their softmax."""
    scaled = logits / jnp.where(wishes.temperature > 0, wishes.temperature, 1)[:, None]
    scaled = jax.lax.cond(jnp.any(wishes.top_p < 1), lambda: _likeliest(scaled, wishes.top_p), lambda: scaled)

    def noise(seed: jax.Array, number: jax.Array) -> jax.Array:
        return jax.random.gumbel(
            jax.random.fold_in(jax.random.key(seed), number), logits.shape[1:], jnp.float32
        )

    return jnp.argmax(scaled + jax.vmap(noise)(wishes.seed, made), -1).astype(jnp.int32)


def _likeliest(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Without those that the fewest likeliest tokens of a probability of `top_p` do without."""
    falling = -jnp.sort(-logits, -1)
    chances = jax.nn.softmax(falling)
    needed = jnp.cumsum(chances, -1) - chances < top_p[:, None]
    least = jnp.where(needed, falling, jnp.inf).min(-1, keepdims=True)
    return jnp.where((logits >= least) | (top_p[:, None] >= 1), logits, -jnp.inf)
