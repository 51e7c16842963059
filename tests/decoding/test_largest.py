"""The largest of many, and the few largest, against NumPy's stable sort and argmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.decoding import largest as module
from mlperf_jax.decoding.largest import first_largest, largest


@pytest.fixture(scope="module", autouse=True)
def on_a_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compiled_for", lambda: "cpu")
        yield


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    size=st.integers(1, 2000),
    count=st.integers(1, 12),
    values=st.sampled_from([2, 30, 10**9]),
    none=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_rows_with_equal_and_infinite_numbers(rows, size, count, values, none, seed):
    random = np.random.default_rng(seed)
    x = random.integers(values, size=(rows, size)).astype(np.float32)
    x[random.random(x.shape) < none] = -np.inf
    count = min(count, size)
    found, places = largest(jnp.asarray(x), count)
    expected = np.argsort(-x, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(x, expected, 1))
    np.testing.assert_array_equal(first_largest(jnp.asarray(x[None])), x[None].argmax(-1))


def test_one_search_goes_through_blocks_alone():
    """XLA's search, which one core makes, of the 128 blocks and of 1,024 numbers, never of all 16,384."""
    text = jax.jit(lambda x: largest(x, 8)).lower(jnp.zeros((2, 16384))).as_text()
    searched = [line for line in text.splitlines() if "chlo.top_k" in line]
    assert len(searched) == 2
    assert not any("2x16384xf32" in line for line in searched)
