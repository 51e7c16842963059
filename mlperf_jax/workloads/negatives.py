"""Which training example stands where in an epoch, and what is drawn for it: worked out on the device from numbers.

Nothing is stored: the order is a permutation that can be asked for any place, and a negative is the k-th item
that a user did not choose, found by bisection in the user's sorted items. So the host feeds nothing but
positions, a run continues at any step, and every layout trains on the same examples.

All numbers are uint32 hashes (`mixed`); a remainder of one is even to 1 part in 2**32 over its divisor, 6e-6 of
MovieLens-20M's items.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_ROUNDS = 4


class Examples(NamedTuple):
    """Users [B], items [B] int32 and labels [B] float32: 1 for a chosen item."""

    user: jax.Array
    item: jax.Array
    label: jax.Array


def mixed(x: jax.Array) -> jax.Array:
    """A bijection of uint32 whose bits all depend on all (Wellons, "hash prospector", lowbias32)."""
    x ^= x >> 16
    x *= jnp.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def epoch_key(seed: jax.Array, epoch: jax.Array) -> jax.Array:
    """What the order and the draws of an epoch depend on, uint32."""
    return mixed(mixed(seed.astype(jnp.uint32)) + epoch.astype(jnp.uint32) * jnp.uint32(0x9E3779B1))


def shuffled(place: jax.Array, length: int, key: jax.Array) -> jax.Array:
    """A permutation of range(length) that the key decides, at some places.

    Numbers below a * b, with a and b just above the root of `length`, are pairs of digits, of which each in turn is
    moved by a hash of the other: a Feistel network of mixed radix. What falls beyond `length` is sent through again
    until it does not (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).

    Args:
        place: uint32, from 0.
        length: at least 1.
        key: uint32, of the shape of `place`.
    """
    low_size = math.isqrt(length - 1) + 1
    high_size = -(-length // low_size)

    def once(x: jax.Array) -> jax.Array:
        low, high = x % low_size, x // low_size
        for number in range(_ROUNDS):
            salt = mixed(key + jnp.uint32(2 * number))
            low = (low + mixed(high ^ salt) % low_size) % low_size
            salt = mixed(key + jnp.uint32(2 * number + 1))
            high = (high + mixed(low ^ salt) % high_size) % high_size
        return high * low_size + low

    def beyond(x: jax.Array) -> jax.Array:
        return (x >= length).any()

    return jax.lax.while_loop(beyond, lambda x: jnp.where(x >= length, once(x), x), once(place))


def not_chosen(
    rank: jax.Array, user: jax.Array, item: jax.Array, start: jax.Array, num_items: int
) -> jax.Array:
    """The `rank`-th of the items that are not a user's, from 0, in their order.

    Of a user's sorted items a_0, a_1, ... the number a_i - i of others below never falls, so how many of them lie
    below the wanted one is found by bisection.

    Args:
        rank: [B] int32, below the number of such items.
        user: [B] int32.
        item, start: as `input_pipelines.ratings.interactions.Interactions` has them.
        num_items: of all.
    """
    first = start[user]
    low, high = jnp.zeros_like(rank), start[user + 1] - first
    for _ in range(num_items.bit_length()):
        middle = (low + high) // 2
        below = (low < high) & (item[jnp.minimum(first + middle, len(item) - 1)] - middle <= rank)
        low, high = jnp.where(below, middle + 1, low), jnp.where(below | (low >= high), high, middle)
    return rank + low


def drawn(
    epoch: jax.Array,
    offset: jax.Array,
    seed: jax.Array,
    item: jax.Array,
    start: jax.Array,
    *,
    negatives: int,
    num_items: int,
) -> Examples:
    """The training examples at some places of the order of epochs.

    Args:
        epoch, offset: [B] int32, of a place.
        seed: of the run, uint32 [].
        item, start: as `Interactions` has them.
        negatives: drawn for each chosen item.
        num_items: of all.
    """
    key = epoch_key(seed, epoch)
    example = shuffled(offset.astype(jnp.uint32), len(item) * (1 + negatives), key)
    choice = (example // (1 + negatives)).astype(jnp.int32)
    chosen = example % (1 + negatives) == 0
    # Unrolled: as a loop its rounds are launches, a third of a step on a GPU.
    user = jnp.searchsorted(start, choice, side="right", method="scan_unrolled").astype(jnp.int32) - 1
    others = (num_items - (start[user + 1] - start[user])).astype(jnp.uint32)
    rank = mixed(mixed(example ^ mixed(~key))) % others
    negative = not_chosen(rank.astype(jnp.int32), user, item, start, num_items)
    return Examples(user, jnp.where(chosen, item[choice], negative), chosen.astype(jnp.float32))
