"""Early stopping against exact binomial sums and the published numbers of queries."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from loadgen_py.early_stopping import fast_queries_needed, odds, slow_queries_allowed

PERCENTILES = (0.5, 0.9, 0.95, 0.97, 0.99, 0.999)


def _exact_odds(fast: int, slow: int, percentile: float) -> float:
    p = Fraction(percentile)
    total = fast + slow
    return float(sum(math.comb(total, k) * (1 - p) ** k * p ** (total - k) for k in range(slow + 1)))


@pytest.mark.parametrize("percentile", PERCENTILES)
def test_odds_are_the_binomial_sum(percentile):
    for fast in (1, 2, 7, 44, 150, 400):
        for slow in (0, 1, 2, 5, 12):
            if slow <= fast:
                assert odds(fast, slow, percentile) == pytest.approx(
                    _exact_odds(fast, slow, percentile), rel=1e-8
                )


@pytest.mark.parametrize(
    "percentile, none_slow, one_slow",
    [(0.9, 44, 64), (0.95, 90, 130), (0.97, 152, 219), (0.99, 459, 662), (0.999, 4603, 6636)],
)
def test_the_published_numbers(percentile, none_slow, one_slow):
    """Table of the MLPerf Inference rules: queries needed with none and with one over the bound."""
    assert fast_queries_needed(0, percentile) == none_slow
    assert fast_queries_needed(1, percentile) + 1 == one_slow


@pytest.mark.parametrize("percentile", PERCENTILES)
def test_the_fewest_queries(percentile):
    for slow in (0, 1, 3, 20, 250):
        fast = fast_queries_needed(slow, percentile)
        assert odds(fast, slow, percentile) < 0.01 <= odds(fast - 1, slow, percentile)


@pytest.mark.parametrize("percentile", PERCENTILES)
def test_the_most_slow_queries(percentile):
    least = fast_queries_needed(1, percentile) + 1
    for count in (least, least + 1, 2 * least, 17 * least, 200_000):
        slow = slow_queries_allowed(count, percentile)
        assert fast_queries_needed(slow, percentile) + slow <= count
        assert fast_queries_needed(slow + 1, percentile) + slow + 1 > count


def test_many_slow_queries_do_not_overflow():
    assert fast_queries_needed(100_000, 0.99) == pytest.approx(9.98e6, rel=0.01)
