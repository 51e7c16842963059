"""Examples made on the device: orders are permutations, negatives are what a user did not choose, evenly."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.workloads import negatives
from tests import toys_ratings

EACH = 5


@functools.partial(jax.jit, static_argnames="length")
def permutation(length, key):
    places = jnp.arange(length, dtype=jnp.uint32)
    return negatives.shuffled(places, length, jnp.full(length, key, jnp.uint32))


def order(length, key):
    return np.asarray(permutation(length, np.uint32(key)))


@settings(max_examples=60, deadline=None)
@given(length=st.sampled_from([1, 2, 3, 7, 10, 97, 2500]), key=st.integers(0, 2**32 - 1))
def test_an_order_holds_every_number_once(length, key):
    assert sorted(order(length, key)) == list(range(length))


def test_orders_look_drawn():
    """Of 1,000 keys the first of seven places holds each number about as often; neighbours do not follow."""
    first = collections.Counter(order(7, key)[0] for key in range(1000))
    assert all(100 < first[number] < 190 for number in range(7))
    one, other = order(20_000, 1), order(20_000, 2)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(one, np.arange(20_000))[0, 1]) < 0.03


@functools.cache
def drawn():
    data = toys_ratings.dataset()

    def everything(number, seed):
        return negatives.drawn(
            jnp.full(data.num_train, number, jnp.int32),
            jnp.arange(data.num_train, dtype=jnp.int32),
            seed,
            jnp.asarray(data.data.item),
            jnp.asarray(data.data.start),
            negatives=EACH - 1,
            num_items=data.data.num_items,
        )

    return jax.jit(everything)


def epoch(number, seed=1):
    """All examples of an epoch of the toy."""
    return [np.asarray(x) for x in drawn()(np.int32(number), np.uint32(seed))]


def chosen():
    """{(user, item)} of the training set."""
    data = toys_ratings.dataset().data
    return {
        (user, int(item))
        for user in range(data.num_users)
        for item in data.item[data.start[user] : data.start[user + 1]]
    }


def test_each_choice_once_an_epoch_with_negatives_of_its_user():
    pairs, data = chosen(), toys_ratings.dataset().data
    user, item, label = epoch(0)
    pairs_drawn = list(zip(user.tolist(), item.tolist(), strict=True))
    positives = [pair for pair, one in zip(pairs_drawn, label, strict=True) if one]
    others = [pair for pair, one in zip(pairs_drawn, label, strict=True) if not one]
    assert len(positives) == len(pairs) and set(positives) == pairs
    assert not pairs.intersection(others)
    counts = collections.Counter(user for user, _ in others)
    sizes = np.diff(data.start)
    assert [counts[u] for u in range(data.num_users)] == (sizes * (EACH - 1)).tolist()
    assert min(item) >= 0 and max(item) < data.num_items


def test_negatives_are_fresh_and_even():
    pairs, data = chosen(), toys_ratings.dataset().data
    counts = np.zeros((data.num_users, data.num_items))
    seen = [epoch(number) for number in range(40)]
    for user, item, label in seen:
        np.add.at(counts, (user[label == 0], item[label == 0]), 1)
    expected = np.zeros_like(counts)
    for user in range(data.num_users):
        size = data.start[user + 1] - data.start[user]
        free = [i for i in range(data.num_items) if (user, i) not in pairs]
        expected[user, free] = 40 * size * (EACH - 1) / len(free)
    free = expected > 0
    chi = ((counts - expected)[free] ** 2 / expected[free]).sum()
    degrees = free.sum() - data.num_users
    assert abs(chi - degrees) < 5 * np.sqrt(2 * degrees)
    assert (seen[0][1] != seen[1][1]).any() and (epoch(0, seed=2)[1] != seen[0][1]).any()


@pytest.mark.parametrize("own", [[], [0], [4], [0, 1, 2], [1, 3], [0, 1, 2, 3]])
def test_the_items_that_are_not_a_users(own):
    item, start = jnp.array([0, 4, *own, 2], jnp.int32), jnp.array([0, 2, 2 + len(own), 3 + len(own)])
    free = [i for i in range(5) if i not in own]
    rank = jnp.arange(len(free), dtype=jnp.int32)
    found = jax.jit(negatives.not_chosen, static_argnums=4)(
        rank, jnp.ones_like(rank), item, start.astype(jnp.int32), 5
    )
    assert found.tolist() == free
