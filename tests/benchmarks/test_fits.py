"""Power laws are found again, and their exponents' ranges hold what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.speed.fits import CONFIDENCE, power_law

SIZES = st.lists(st.integers(1, 10**6), min_size=3, max_size=9, unique=True)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.floats(-3, 3), st.floats(1e-6, 1e6), st.floats(1e-3, 1e3))
def test_exact_laws_are_found(sizes, exponent, factor, unit):
    times = factor * np.array(sizes, float) ** exponent
    found = power_law(sizes, times.tolist())
    assert found["exponent"] == pytest.approx(exponent, abs=1e-6)
    assert found["low"] == pytest.approx(exponent, abs=1e-4) == found["high"]
    assert np.log(found["factor"]) == pytest.approx(np.log(factor), abs=1e-4)
    # The unit of a size changes the factor alone.
    assert power_law([unit * x for x in sizes], times.tolist())["exponent"] == pytest.approx(
        exponent, abs=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_it_is_the_least_squares_line_of_logarithms(sizes, seed):
    """Against SciPy's regression, with two times of each size."""
    sizes = np.repeat(sizes, 2)
    times = sizes**0.7 * np.exp(np.random.default_rng(seed).normal(size=len(sizes)))
    found = power_law(sizes.tolist(), times.tolist())
    line = stats.linregress(np.log(sizes), np.log(times))
    assert found["exponent"] == pytest.approx(line.slope, rel=1e-6, abs=1e-9)
    assert np.log(found["factor"]) == pytest.approx(line.intercept, rel=1e-6, abs=1e-9)
    margin = stats.t.ppf(0.975, len(sizes) - 2) * line.stderr
    assert found["high"] - line.slope == pytest.approx(margin) == line.slope - found["low"]


def test_the_true_exponent_is_inside_as_often_as_promised():
    random = np.random.default_rng(0)
    sizes = np.repeat([16, 32, 64, 128], 3)
    inside = 0
    for _ in range(1000):
        found = power_law(
            sizes.tolist(), (0.3 * sizes**0.9 * np.exp(random.normal(0, 0.1, len(sizes)))).tolist()
        )
        inside += found["low"] <= 0.9 <= found["high"]
    assert inside / 1000 == pytest.approx(CONFIDENCE, abs=0.025)


@pytest.mark.parametrize(
    ("sizes", "times"), [([4, 4], [1, 2]), ([1, 2], [1, 0]), ([0, 2], [1, 1]), ([3], [1])]
)
def test_what_has_no_power_law(sizes, times):
    with pytest.raises(ValueError, match="a power law needs two sizes"):
        power_law(sizes, times)


def test_two_points_leave_no_range():
    found = power_law([1, 2], [3.0, 12.0])
    assert found["low"] == found["exponent"] == found["high"] == pytest.approx(2)
