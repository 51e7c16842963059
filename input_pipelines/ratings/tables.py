"""Tables of ratings as text: names of users and items, and times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def read(lines: Iterable[str], delimiter: str, columns: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Whole numbers of some columns of a table with one line of titles, [n] int64 each; 1e9 and 2.5 are cut to whole ones.

    Raises:
        ValueError: a line has too few columns, or no number in one of them.
    """
    table = np.loadtxt(lines, np.float64, delimiter=delimiter, usecols=columns, skiprows=1, ndmin=2)
    if not (np.abs(table) < 2**53).all():
        raise ValueError("a number is none, or too large to be whole")
    return tuple(table.T.astype(np.int64))
