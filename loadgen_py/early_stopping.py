"""How many slow queries a run may have: LoadGen's early stopping at confidence 0.99, tolerance 0.

With a share of at least `p` of all queries under the bound, t or fewer slow ones among
h + t would be seen with probability P(h, t) = P[Binomial(h + t, 1 - p) <= t]. A run has
enough evidence once P(h, t) < 0.01. See "Early stopping" in the MLPerf Inference rules.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

_ALLOWED = 1 - 0.99  # as the official package computes it, not exactly 0.01
_NEGLIGIBLE = 1.0 / (1 << 33)
_BLOCK = 1 << 14


def odds(fast: int, slow: int, percentile: float) -> float:
    """P[Binomial(fast + slow, 1 - percentile) <= slow], for fast >= 1.

    The regularised incomplete beta function I_p(fast, slow + 1) through the hypergeometric
    series 2F1(1, -slow; fast + 1; p / (p - 1)), as in the official package (DLMF 15.8.1).
    """
    beta = math.lgamma(fast) + math.lgamma(slow + 1) - math.lgamma(fast + slow + 1)
    front = math.exp(fast * math.log(percentile) + slow * math.log(1 - percentile) - beta) / fast
    return front * _series(slow, fast + 1, percentile / (percentile - 1))


def _series(slow: int, c: int, x: float) -> float:
    total, term = 1.0, 1.0
    for start in range(0, slow, _BLOCK):
        i = np.arange(start, min(start + _BLOCK, slow), dtype=np.float64)
        terms = term * np.cumprod((i - slow) * x / (c + i))
        total += float(terms.sum())
        term = float(terms[-1])
        if term <= _NEGLIGIBLE:
            break
    return total


@functools.lru_cache(maxsize=4096)
def fast_queries_needed(slow: int, percentile: float) -> int:
    """h(t): the fewest queries under the bound that outweigh `slow` ones over it."""
    none_slow = math.ceil(math.log(_ALLOWED) / math.log(percentile))
    # With fewer fast ones the slow share is above 1 - percentile, and the odds about even or more.
    low = max(1, int(slow * percentile / (1 - percentile)))
    high = low + none_slow * (slow + 1) + 1
    return _first(lambda fast: odds(fast, slow, percentile) < _ALLOWED, low, high)


def slow_queries_allowed(queries: int, percentile: float) -> int:
    """t*: the most of `queries` (at least h(1) + 1) that may count as slow, at least 1."""
    # Above the expected number of slow queries the odds are about even or more.
    high = max(2, int(queries * (1 - percentile)) + 1)
    return _first(lambda t: not odds(queries - t, t, percentile) < _ALLOWED, 2, high) - 1


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest integer from `low` for which `holds`, at most `high`; `holds` never turns back."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
