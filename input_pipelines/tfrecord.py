"""TFRecords and the `tf.train.Example`s in them, read without TensorFlow.

A record is its length (8 bytes), that length's checksum (4), the bytes, and their checksum (4): tensorflow/core/lib/io/
record_writer.h. The checksum of lengths is compared, so that a damaged file is noticed where its records no longer
follow each other; that of the bytes is not. Files are never held whole: an index has the place of every so many
records, and blocks of as many are read.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from mlperf_jax.errors import Refused, UserError
from mlperf_jax.weights.protobuf import as_bytes, fields, varints

HEAD, TAIL = 12, 4  # bytes around a record's own


def offsets(path: Path, every: int) -> tuple[np.ndarray, int]:
    """Where every `every`th record of a file begins, and how many there are.

    Only lengths are read. The first array has one more than blocks: the file's end, [K + 1] int64.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    starts, count, position = [], 0, 0
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=1 << 20) as file:
            while position < size:
                if count % every == 0:
                    starts.append(position)
                position += HEAD + _length(file.read(HEAD)) + TAIL
                file.seek(position)
                count += 1
        if position != size:
            raise Refused("it ends inside a record")
    except (OSError, Refused) as error:
        raise _unreadable(path, error) from None
    return np.array([*starts, position], np.int64), count


def block(path: Path, start: int, stop: int) -> list[bytes]:
    """The records between two places of a file that `offsets` found.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        return list(_records(memoryview(data)))
    except (OSError, Refused) as error:
        raise _unreadable(path, error) from None


def parse(example: bytes) -> dict[str, np.ndarray | list[bytes]]:
    """The features of a `tf.train.Example`: float32 [N], int64 [N], or texts.

    Raises:
        Refused: it is none, or damaged.
    """
    found: dict[str, np.ndarray | list[bytes]] = {}
    try:
        for features in _all(example, 1):
            for entry in _all(features, 1):
                parts = dict(fields(entry))
                feature = as_bytes(parts.get(2, memoryview(b"")))
                for kind, values in fields(feature):
                    found[bytes(as_bytes(parts[1])).decode()] = _VALUES[kind](as_bytes(values))
    except (IndexError, KeyError, ValueError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise error if isinstance(error, Refused) else Refused("a record is no example, or damaged") from None
    return found


def encode(example: Mapping[str, np.ndarray]) -> bytes:
    """A `tf.train.Example` of features float32 [N] or integers [N], as TensorFlow writes it but for their order."""

    def feature(values: np.ndarray) -> bytes:
        if values.dtype.kind == "f":
            return _field(2, _field(1, values.astype("<f4").tobytes()))
        return _field(3, _field(1, b"".join(_varint(int(value) % 2**64) for value in values)))

    entries = (
        _field(1, _field(1, name.encode()) + _field(2, feature(values))) for name, values in example.items()
    )
    return _field(1, b"".join(entries))


def framed(record: bytes) -> bytes:
    """A record as it stands in a file."""
    length = struct.pack("<Q", len(record))
    return length + struct.pack("<I", _masked(length)) + record + struct.pack("<I", _masked(record))


def _records(data: memoryview) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        first = position + HEAD
        length = _length(data[position:first])
        if first + length + TAIL > len(data):
            raise Refused("it ends inside a record")
        yield bytes(data[first : first + length])
        position = first + length + TAIL


def _length(head: bytes | memoryview) -> int:
    if len(head) != HEAD:
        raise Refused("it ends inside a record")
    length, checksum = struct.unpack("<QI", head)
    if _masked(head[:8]) != checksum:
        raise Refused("it is no TFRecord file, or damaged")
    return length


def _masked(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli), turned and moved, as TFRecords have it."""
    crc, table = 0xFFFFFFFF, _castagnoli()
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _castagnoli() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def _all(message: bytes | memoryview, number: int) -> Iterator[memoryview]:
    return (as_bytes(value) for field, value in fields(message) if field == number)


def _integers(values: memoryview) -> np.ndarray:
    """Packed, as every writer of today has them, or one by one."""
    parts = [
        varints(value) if isinstance(value, memoryview) else np.array([value], np.uint64)
        for field, value in fields(values)
        if field == 1
    ]
    return np.concatenate([np.zeros(0, np.uint64), *parts]).view(np.int64)


def _floats(values: memoryview) -> np.ndarray:
    return np.frombuffer(b"".join(_all(values, 1)), "<f4").astype(np.float32)


def _texts(values: memoryview) -> list[bytes]:
    return [bytes(value) for value in _all(values, 1)]


_VALUES: Mapping[int, Callable[[memoryview], np.ndarray | list[bytes]]] = {
    1: _texts,
    2: _floats,
    3: _integers,
}
"""By the field of tf.train.Feature that holds a list."""


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value > 127:
        octets.append(value & 127 | 128)
        value >>= 7
    return bytes([*octets, value])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as TFRecords: {error}; get a sound copy of it.")
