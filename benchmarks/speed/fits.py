"""Power laws through measured times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def power_law(sizes: Sequence[float], times: Sequence[float]) -> dict[str, float]:
    """`exponent` e and `factor` f of times = f * sizes^e, by least squares of the logarithms.

    Args:
        sizes, times: [n] above 0, at least two different sizes.

    Returns:
        Also `low` and `high`, between which the exponent lies with 95 % confidence, if what the logarithms are off by is
        drawn from one normal distribution (Student's t with n - 2 degrees of freedom); equal to it where n is 2.

    Raises:
        ValueError: fewer sizes, or numbers that are not above 0.
    """
    if len(set(sizes)) < 2 or min(*sizes, *times) <= 0:
        raise ValueError("a power law needs two sizes, and numbers above 0")
    x, y = np.log(sizes), np.log(times)
    exponent, offset = np.polyfit(x, y, 1)
    free = len(sizes) - 2
    margin = 0.0
    if free:
        error = np.sqrt(np.sum((y - exponent * x - offset) ** 2) / free / np.sum((x - x.mean()) ** 2))
        margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, free) * error)
    return {
        "exponent": float(exponent),
        "low": float(exponent) - margin,
        "high": float(exponent) + margin,
        "factor": float(np.exp(offset)),
    }
