"""Protocol buffers' wire format, as far as files of weights need it.

Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlperf_jax.errors import Refused

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def fields(data: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field of a message."""
    data, position = memoryview(data), 0
    while position < len(data):
        key, position = varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            number, position = varint(data, position)
            yield key >> 3, number
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES, _BYTES):
            if kind == _BYTES:
                size, position = varint(data, position)
            else:
                size = 8 if kind == _EIGHT_BYTES else 4
            if position + size > len(data):
                raise Refused("it ends in the middle of a field")
            yield key >> 3, data[position : position + size]
            position += size
        else:
            raise Refused("it is no protocol buffer, or damaged")


def as_number(value: int | memoryview) -> int:
    """The value of a field that holds a number.

    Raises:
        TypeError: it holds bytes.
    """
    if not isinstance(value, int):
        raise TypeError("bytes where a number belongs")
    return value


def as_bytes(value: int | memoryview) -> memoryview:
    """The value of a field that holds bytes: a text, a message, numbers one after the other.

    Raises:
        TypeError: it holds a number.
    """
    if isinstance(value, int):
        raise TypeError("a number where bytes belong")
    return value


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """The number that begins at `position`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise Refused("it has a number of more than 64 bits")


def varints(data: bytes | memoryview) -> np.ndarray:
    """The numbers that follow each other in a field, uint64."""
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 128)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    lengths = ends - starts[: len(ends)] + 1
    if (octets.size and (not ends.size or ends[-1] != octets.size - 1)) or (lengths > 10).any():
        raise Refused("it has a number without an end, or of more than 64 bits")
    values = np.zeros(len(ends), np.uint64)
    for i in range(int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > i)
        values[longer] |= (octets[starts[longer] + i] & 127).astype(np.uint64) << np.uint64(7 * i)
    return values
