"""Where rows lie: every row of every table has one place of its own, and keeps it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.embedding.tables import Tables

cases = st.builds(
    lambda sizes, groups, stripes: Tables(tuple(sizes), (1,) * len(sizes), 4, groups, stripes),
    st.lists(st.integers(1, 70), min_size=1, max_size=9),
    st.sampled_from([1, 2, 3, 8]),
    st.sampled_from([1, 2, 8]),
)


@settings(max_examples=15, deadline=None)
@given(cases)
def test_every_row_has_a_place_of_its_own(tables):
    places = [
        np.asarray(tables.places(np.full((1, tables.num_tables), row, np.int32)))[0]
        for row in range(max(tables.sizes))
    ]
    taken = [places[row][t] for t, size in enumerate(tables.sizes) for row in range(size)]
    groups, rows, _ = tables.shape
    assert len(set(taken)) == sum(tables.sizes) and 0 <= min(taken) <= max(taken) < groups * rows
    assert rows % (8 * tables.stripes) == 0
    for t, size in enumerate(tables.sizes):  # a table is whole in its group
        assert {int(places[row][t]) // rows for row in range(size)} == {tables.group_of[t]}


@settings(max_examples=10, deadline=None)
@given(cases, st.integers(0, 2**20))
def test_stacking_and_places_agree(tables, seed):
    random = np.random.default_rng(seed)
    arrays = [random.normal(size=(size, tables.width)) for size in tables.sizes]
    stack = tables.stacked(arrays, np.float64)
    for back, array in zip(tables.unstacked(stack), arrays, strict=True):
        np.testing.assert_array_equal(back, array)
    rows = random.integers(tables.sizes, size=(5, tables.num_tables)).astype(np.int32)
    found = stack.reshape(-1, tables.width)[np.asarray(tables.places(rows))]
    for t, array in enumerate(arrays):
        np.testing.assert_array_equal(found[:, t], array[rows[:, t]])


def test_groups_are_balanced():
    tables = Tables((50, 40, 30, 20, 10, 10), (1,) * 6, 4, groups=3, stripes=1)
    loads = np.bincount(tables.group_of, tables.sizes)
    assert sorted(loads) == [50, 50, 60]
    assert tables.rows == 64 and tables.num_parameters == 160 * 4


@pytest.mark.parametrize("groups", [1, 3])
def test_first_values_are_uniform_within_each_tables_bound(groups):
    tables = Tables((4, 400, 25, 64), (1,) * 4, 32, groups, stripes=4)
    stack = tables.initial(jax.random.key(3), jnp.float32)
    used = 0
    for size, table in zip(tables.sizes, tables.unstacked(np.asarray(stack)), strict=True):
        bound = 1 / np.sqrt(size)
        assert np.abs(table).max() <= bound and np.abs(table).max() > 0.9 * bound
        assert abs(table.mean()) < 4 * bound / np.sqrt(3 * table.size)
        np.testing.assert_allclose(table.std(), bound / np.sqrt(3), rtol=0.15)
        used += np.count_nonzero(table)
    assert np.count_nonzero(stack) == used  # rows that only fill up are zeros


def test_more_rows_than_int32_numbers():
    with pytest.raises(ValueError, match="int32"):
        Tables((2**30,) * 2, (1, 1), 4, groups=2)


@settings(max_examples=25, deadline=None)
@given(examples=st.integers(1, 300), skew=st.floats(0, 2), seed=st.integers(0, 2**32 - 1))
def test_random_look_ups_ask_for_the_most_rows(examples, skew, seed):
    """On average of many batches: as many as said where every row is as likely, and never more where some are likelier."""
    tables = Tables((40, 3, 17, 90, 1, 25), (1, 2, 1, 5, 1, 3), width=8, stripes=8)
    random = np.random.default_rng(seed)
    counts = []
    for _ in range(60):
        asked = 0
        for size, hot in zip(tables.sizes, tables.hots, strict=True):
            likely = (1.0 + np.arange(size)) ** -skew
            asked += len(np.unique(random.choice(size, examples * hot, p=likely / likely.sum())))
        counts.append(asked)
    error = 6 * np.std(counts) / np.sqrt(len(counts)) + 0.5
    said = tables.distinct_rows(examples)
    assert np.mean(counts) < said + error
    assert skew > 0 or np.mean(counts) > said - error
