"""Rows sent between devices, against NumPy: whoever wants which, everything arrives, in the fewest rounds."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from mlperf_jax.embedding.exchange import Exchange, first_at_least

DEVICES, ROWS, COUNT = 8, 27, 40
NONE = DEVICES * ROWS
RANDOM = np.random.default_rng(5)
CASES = {
    "evenly spread": RANDOM.integers(0, NONE, (DEVICES, COUNT)),
    "one row, everybody": np.full((DEVICES, COUNT), 77),
    "one holder": RANDOM.integers(3 * ROWS, 4 * ROWS, (DEVICES, COUNT)),
    "one holder's first rows": RANDOM.integers(0, 6, (DEVICES, COUNT)),
    "some look nothing up": np.where(
        RANDOM.random((DEVICES, COUNT)) < 0.7, NONE, RANDOM.integers(0, NONE, (8, 1))
    ),
    "some look nothing up, others much of one holder's": np.where(
        RANDOM.random((DEVICES, COUNT)) < 0.3, NONE, RANDOM.integers(7 * ROWS, NONE, (DEVICES, COUNT))
    ),
    "nobody does": np.full((DEVICES, COUNT), NONE),
    "the very last row": np.where(np.arange(COUNT) % 2, NONE - 1, NONE)[None].repeat(DEVICES, 0),
}


def fewest_rounds(rows, room):
    """The least power of two for which no device asks another for more distinct rows in one range."""
    rounds = 1
    while True:
        width = -(-ROWS // rounds)
        most = 0
        for mine in rows:
            distinct = np.unique(mine[mine < NONE])
            asked = distinct // ROWS * 1000 + distinct % ROWS // width
            most = max(most, *np.bincount(asked), 0) if len(asked) else most
        if most <= room:
            return rounds
        rounds *= 2


@functools.cache
def exchanging(room):
    """A compiled function of every device's wishes: what it found, what it wanted, in how many rounds."""
    between = Exchange("x", ("x",), DEVICES, ROWS, room)

    def local(table, rows):
        wanted = between.wanted(rows[0])

        def one_round(number, found):
            held = table.at[between.trade(between.asked(wanted, number))].get(
                mode="clip"
            )  # any where none is asked for
            arrived = between.trade(held).ravel()
            return found + arrived.at[-1].set(0)[between.places(wanted, number)]

        found = jax.lax.fori_loop(0, wanted.rounds, one_round, 0 * rows[0])
        return found[None], wanted.distinct[None], wanted.rounds[None]

    mesh = Mesh(np.array(jax.devices()[:DEVICES]), "x")
    on_x = PartitionSpec("x")
    return jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(on_x, on_x), out_specs=(on_x,) * 3, check_vma=False)
    )


@pytest.mark.parametrize("room", [1, 3, 7, COUNT])
@pytest.mark.parametrize("case", CASES)
def test_everyone_gets_what_they_want(case, room):
    rows = CASES[case].astype(np.int32)
    table = np.arange(1, NONE + 1, dtype=np.int32)  # row r holds r + 1; 0 is for none
    found, distinct, rounds = exchanging(room)(table, rows)
    np.testing.assert_array_equal(found, np.where(rows < NONE, rows + 1, 0))
    for mine, expected in zip(np.asarray(distinct), rows, strict=True):
        wanted = np.unique(expected)
        np.testing.assert_array_equal(mine[: len(wanted)], wanted)
        assert (mine[len(wanted) :] == NONE).all()
    assert set(np.asarray(rounds).tolist()) == {fewest_rounds(rows, room)}


@settings(max_examples=40, deadline=None)
@given(count=st.sampled_from([1, 5, 300, 20_000]), seed=st.integers(0, 2**20))
def test_first_at_least_equals_numpys_searchsorted(count, seed):
    random = np.random.default_rng(seed)
    numbers = np.sort(random.integers(random.integers(1, 2 * count + 1), size=count)).astype(np.int32)
    bounds = random.integers(-1, 2 * count + 2, size=(2, 9)).astype(np.int32)
    np.testing.assert_array_equal(first_at_least(numbers, bounds), np.searchsorted(numbers, bounds))
