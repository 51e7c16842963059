"""FlatBuffers' format, as far as files of weights need it.

Source: https://flatbuffers.dev/internals/. A table begins with how far before it its list of fields lies; what is not a
number of fixed size lies where an offset points to, always further on. Every step looks whether it stays in the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from mlperf_jax.errors import Refused


class Table:
    """A table; its fields go by their numbers in the schema, and one that is not there has its default.

    Args:
        data: the whole buffer.
        position: of the table in it.
    """

    def __init__(self, data: memoryview, position: int) -> None:
        self._data, self._position = data, position
        self._fields = position - _number(data, position, "i")
        self._count = (_number(data, self._fields, "H") - 4) // 2

    @classmethod
    def root(cls, data: memoryview) -> Table:
        """The table that a buffer is about."""
        return cls(data, _number(data, 0, "I"))

    def number(self, field: int, kind: str, default: int = 0) -> int:
        """A whole number; `kind` as `struct` has it: b, B, i, I, Q."""
        place = self._place(field)
        return default if place is None else _number(self._data, place, kind)

    def tables(self, field: int) -> Iterator[Table]:
        """The tables of a list, one after the other; the same may stand in it any number of times."""
        start, count = self._vector(field, 4)
        for place in range(start, start + 4 * count, 4):
            yield Table(self._data, place + _number(self._data, place, "I"))

    def numbers(self, field: int, dtype: np.dtype) -> np.ndarray:
        """A list of numbers, which stays where it is in the buffer."""
        start, count = self._vector(field, dtype.itemsize)
        return np.frombuffer(self._data[start : start + count * dtype.itemsize], dtype)

    def has(self, field: int) -> bool:
        return self._place(field) is not None

    def table(self, field: int) -> Table | None:
        place = self._place(field)
        return None if place is None else Table(self._data, place + _number(self._data, place, "I"))

    def _place(self, field: int) -> int | None:
        if field >= self._count:
            return None
        offset = _number(self._data, self._fields + 4 + 2 * field, "H")
        return self._position + offset if offset else None

    def _vector(self, field: int, itemsize: int) -> tuple[int, int]:
        """Where the items of a list begin, and how many there are."""
        place = self._place(field)
        if place is None:
            return 0, 0
        start = place + _number(self._data, place, "I")
        count = _number(self._data, start, "I")
        if start + 4 + count * itemsize > len(self._data):
            raise Refused("it has a list that goes on after its end")
        return start + 4, count


def _number(data: memoryview, position: int, kind: str) -> int:
    if position < 0 or position + struct.calcsize("<" + kind) > len(data):
        raise Refused("it points out of itself")
    return struct.unpack_from("<" + kind, data, position)[0]
