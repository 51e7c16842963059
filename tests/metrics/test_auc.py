"""The area under the ROC curve against scikit-learn and against counting pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.metrics import auc

counted = jax.jit(auc.count)


def area(score, label, mask, dtype=np.float32):
    """Of [N, B] arrays, a row a batch."""
    totals = auc.init(*score.shape, dtype)
    for row in zip(score.astype(dtype), label, mask, strict=True):
        totals = auc.update(totals, *row)
    return auc.compute(jax.device_get(counted(totals)))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    digits=st.integers(0, 6),
    positives=st.floats(0.05, 0.95),
    real=st.floats(0.5, 1.0),
)
def test_equals_scikit_learns(seed, digits, positives, real):
    """Few digits make many equal scores."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the independent judge")
    random = np.random.default_rng(seed)
    shape = (3, 40)
    label = (random.random(shape) < positives).astype(np.float32)
    mask = (random.random(shape) < real).astype(np.float32)
    label[0, :2], mask[0, :2] = (0, 1), 1  # one of each kind
    score = np.round(random.normal(size=shape) + label, digits).astype(np.float32)
    kept = mask > 0
    expected = metrics.roc_auc_score(label[kept], score[kept])
    assert area(score, label, mask) == pytest.approx(expected, abs=1e-12)


def test_counts_beyond_int32_and_float32():
    """300,000 examples make 2 * 10**10 pairs; their order is known, so is the area, as a fraction."""
    n = 300_000
    label = np.zeros(n, np.float32)
    label[::3] = 1
    score = np.arange(n, dtype=np.float32) / 7
    negatives_below = np.cumsum(label == 0)[label == 1]
    expected = int(negatives_below.sum()) / (100_000 * 200_000)
    order = np.random.default_rng(0).permutation(n)
    assert (
        area(score[order].reshape(10, -1), label[order].reshape(10, -1), np.ones((10, n // 10))) == expected
    )


def test_limbs_join_to_the_largest_counts():
    """As many as Criteo's evaluation set could give."""
    high, low = np.full(680, 2**31 - 1, np.int32), np.full(680, 2**31 - 2, np.int32)
    counts = {"low": low, "high": high, "positives": 3_000_000, "negatives": 86_000_000, "finite": True}
    exact = 680 * ((2**31 - 2) + (2**31 - 1) * 2**14)
    assert auc.compute(counts) == exact / (2 * 3_000_000 * 86_000_000)
    assert 2 * auc.MOST_EXAMPLES <= 2**28 and auc._BLOCK * 2**14 <= 2**31


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_equal_is_a_half_and_the_extremes_are_reached(dtype):
    label, mask = np.array([[0, 1, 0, 1.0]]), np.ones((1, 4))
    with jax.enable_x64(dtype == np.float64):
        assert area(np.full((1, 4), 0.3), label, mask, dtype) == 0.5
        assert area(label, label, mask, dtype) == 1.0
        assert area(-label, label, mask, dtype) == 0.0


def test_nothing_to_compare_is_nan():
    ones = np.ones((1, 3))
    assert np.isnan(area(ones, ones, ones)) and np.isnan(area(ones, 0 * ones, ones))
    assert np.isnan(area(np.array([[np.nan, 0, 1]]), np.array([[0, 1, 0]]), ones))


def test_too_many_examples_to_count():
    with pytest.raises(ValueError, match="134217728"):
        auc.init(2**20, 2**8, jnp.float32)
