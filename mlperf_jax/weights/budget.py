"""What reading a file of weights may cost, whatever the file says; every reader here keeps to it.

Names and shapes. What describes the arrays (a pickle, a header, an index, a graph without its numbers) has at most
`DESCRIPTION` bytes, is read in at most `STEPS` steps of constant cost (a few microseconds, some hundred bytes), and
tells of at most `ARRAYS` arrays.

Numbers. All arrays together have at most `EXPANSION` times the bytes of the file, or `SLACK` where that is more: arrays
that share numbers, or were compressed, unfold no further. They are read one at a time, in time and memory that go with
an array's size; of a compressed entry, or of an array that skips numbers, what lies before or between is passed through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from mlperf_jax.errors import Refused
from mlperf_jax.weights.lazy import LazyArray

DESCRIPTION = 64 * 2**20
STEPS = 2_000_000
ARRAYS = 200_000
EXPANSION = 16
SLACK = 2**20
AXES = 64  # as many as NumPy has

_Item = TypeVar("_Item")


def counted(items: Iterable[_Item], most: int = STEPS, what: str = "parts") -> Iterator[_Item]:
    """The items.

    Raises:
        Refused: there are more than `most`.
    """
    for count, item in enumerate(items):
        if count >= most:
            raise Refused(f"it has more than {most:,} {what}")
        yield item


def shape(name: str, sizes: Sequence[object], dtype: np.dtype) -> tuple[int, ...]:
    """The sizes as an array's shape.

    Raises:
        Refused: they are no shape, or of an array that no memory holds.
    """
    known = [n for n in sizes[: AXES + 1] if type(n) is int and 0 <= n < 2**62]
    if len(known) != len(sizes) or len(sizes) > AXES:
        raise Refused(f"its array {name!r} has an impossible shape")
    if math.prod(max(n, 1) for n in known) * max(dtype.itemsize, 1) >= 2**62:
        raise Refused(f"its array {name!r} is larger than any memory")
    return tuple(known)


def held(arrays: Mapping[str, LazyArray], size: int) -> dict[str, LazyArray]:
    """The arrays of a file of `size` bytes.

    Raises:
        Refused: they are too many, or claim too much.
    """
    if len(arrays) > ARRAYS:
        raise Refused(f"it has more than {ARRAYS:,} arrays")
    if sum(array.nbytes for array in arrays.values()) > allowed(size):
        raise Refused(f"its arrays unfold to more than {EXPANSION} times the file")
    return dict(arrays)


def allowed(size: int) -> int:
    """Bytes to which a file of `size` bytes may unfold."""
    return max(EXPANSION * size, SLACK)
