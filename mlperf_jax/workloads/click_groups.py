"""What one sample of DLRM's inference benchmark is: 100 to 700 consecutive examples, answered together.

A recommender ranks many items for one user. MLPerf cuts the evaluation set, in its order, into groups
whose sizes are drawn from a fixed distribution by NumPy's legacy generator with seed 123; of the
89,137,319 examples of Criteo it makes 330,067 groups. Source: mlcommons/inference,
recommendation/dlrm_v2/pytorch, python/multihot_criteo.py and tools/dist_quantile.txt.
"""

from __future__ import annotations

import numpy as np

QUANTILES = np.array([100] * 2 + [200] * 12 + [300] * 2 + [400, 500, 600, 700])
"""Sizes, equally likely."""
LARGEST = 700
_SEED = 123


def group_bounds(num_examples: int) -> np.ndarray:
    """Where groups begin, and behind the last of them the end: [N + 1] int64; the last group may be cut."""
    # RandomState's streams are frozen (NEP 19), so this stays MLPerf's own cut.
    draws = np.random.RandomState(_SEED).randint(len(QUANTILES), size=num_examples // QUANTILES[0] + 1)
    ends = np.cumsum(QUANTILES[draws])
    return np.concatenate([[0], ends[: np.searchsorted(ends, num_examples)], [num_examples]])
