"""Protocol buffers' wire format, as far as files of weights need it.

Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


class Refused(ValueError):
    """The file is damaged, or holds its weights in a form that is not read."""


def fields(data: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field of a message."""
    data, position = memoryview(data), 0
    while position < len(data):
        key, position = varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = varint(data, position)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES, _BYTES):
            if kind == _BYTES:
                size, position = varint(data, position)
            else:
                size = 8 if kind == _EIGHT_BYTES else 4
            if position + size > len(data):
                raise Refused("it ends in the middle of a field")
            value = data[position : position + size]
            position += size
        else:
            raise Refused("it is no protocol buffer, or damaged")
        yield key >> 3, value


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
