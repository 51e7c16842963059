"""Pairs in order against NumPy's lexsort, in one number each and in two."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.ordering import ordered


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 300),
    most=st.tuples(*[st.integers(0, 31).map(lambda bits: (1 << bits) - 1)] * 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_pairs(count, most, seed):
    random = np.random.default_rng(seed)
    first, second = (random.integers(0, m, count, endpoint=True).astype(np.int32) for m in most)
    found = ordered(first, second, most)
    order = np.lexsort((second, first))
    for numbers, expected in zip(found, (first, second), strict=True):
        assert numbers.dtype == np.int32
        np.testing.assert_array_equal(numbers, expected[order])


@pytest.mark.parametrize(("most", "arrays"), [((2**18 - 1, 2**14 - 1), 1), ((2**18, 2**14 - 1), 2)])
def test_one_array_is_sorted_where_both_fit_in_32_bits(most, arrays):
    numbers = np.zeros(8, np.int32)
    jaxpr = jax.make_jaxpr(lambda a, b: ordered(a, b, most))(numbers, numbers)
    (sort,) = (equation for equation in jaxpr.eqns if equation.primitive.name == "sort")
    assert len(sort.invars) == arrays
