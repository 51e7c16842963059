"""Reads checkpoints of TensorFlow: NAME.index, a sorted table of entries, and NAME.data-00000-of-00001.

Sources: tensorflow/core/util/tensor_bundle (what the entries are), tensorflow/core/protobuf/tensor_bundle.proto
and LevelDB's doc/table_format.md (how the table lies in the file). Nothing in it is executed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mlperf_jax.errors import Refused
from mlperf_jax.weights import budget
from mlperf_jax.weights.lazy import LazyArray, in_file
from mlperf_jax.weights.protobuf import as_bytes, as_number, fields, varint

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
"""The last eight bytes of an index."""

_FOOTER, _TRAILER = 48, 5  # bytes: of the file's end, and after each block (how it is packed, checksum)

DTYPES = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    9: np.dtype(np.int64),
    10: np.dtype(bool),
    14: np.dtype(ml_dtypes.bfloat16),
    19: np.dtype(np.float16),
}
"""DataType of tensorflow/core/framework/types.proto."""


class _Entry(NamedTuple):
    """BundleEntryProto: where an array lies, in bytes of a part."""

    dtype: int
    shape: tuple[int, ...]
    part: int
    offset: int
    size: int
    is_sliced: bool


def read(path: Path) -> dict[str, LazyArray]:
    """The arrays of a checkpoint, by variable.

    Args:
        path: of NAME.index; the data lie beside it.

    Raises:
        Refused: it is damaged, or in a form that is not read.
        OSError: the data cannot be read.
    """
    if path.stat().st_size > budget.DESCRIPTION:
        raise Refused("its index is too large")
    try:
        entries = dict(budget.counted(_entries(path.read_bytes()), budget.ARRAYS, "arrays"))
        shards = dict(fields(entries.pop("", b""))).get(1, 1)
        parts = [path.with_suffix(f".data-{i:05}-of-{shards:05}") for i in range(_shards(shards))]
        found = [(name, _entry(entry)) for name, entry in entries.items()]
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise Refused(f"its index is damaged ({error})") from None
    arrays = {name: _array(name, entry, parts) for name, entry in found if entry.dtype in DTYPES}
    return budget.held(arrays, sum(part.stat().st_size for part in parts if part.is_file()))


def _shards(count: object) -> int:
    if not isinstance(count, int) or not 1 <= count <= 4096:
        raise Refused("its index is damaged (no number of parts)")
    return count


def _entries(data: bytes) -> Iterator[tuple[str, memoryview]]:
    """(key, value) of the table, in order."""
    view = memoryview(data)
    if len(data) < _FOOTER or data[-8:] != MAGIC:
        raise Refused("it is no index of a checkpoint")
    footer = view[-_FOOTER:-8]
    _, position = _handle(footer, 0)
    index, _ = _handle(footer, position)
    # Blocks do not overlap, and names are not much longer than what tells of them.
    blocks, names = 0, 0
    for _, value in _block(view, *index):
        (offset, size), _ = _handle(value, 0)
        blocks += size
        if blocks > len(data):
            raise Refused("its index is damaged (a block is told of twice)")
        for key, entry in _block(view, offset, size):
            names += len(key)
            if names > budget.allowed(len(data)):
                raise Refused("its index is damaged (its names unfold without end)")
            yield key.decode(), entry


def _handle(data: memoryview, position: int) -> tuple[tuple[int, int], int]:
    """(offset, size) of a block, and where the handle ends."""
    offset, position = varint(data, position)
    size, position = varint(data, position)
    return (offset, size), position


def _block(data: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """The entries of a block; each key begins like the one before it."""
    if size < 4 or offset + size + _TRAILER > len(data):
        raise Refused("its index is damaged (a block lies outside)")
    if data[offset + size] != 0:
        raise Refused("its index is compressed")
    block = data[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    end, position, key = size - 4 * (restarts + 1), 0, b""
    while position < end:
        shared, position = varint(block, position)
        fresh, position = varint(block, position)
        length, position = varint(block, position)
        if shared > len(key) or position + fresh + length > end:
            raise Refused("its index is damaged (an entry lies outside)")
        key = key[:shared] + bytes(block[position : position + fresh])
        position += fresh
        yield key, block[position : position + length]
        position += length


def _entry(data: memoryview) -> _Entry:
    shape: tuple[int, ...] = ()
    values: dict[int, int | memoryview] = {}
    for number, value in fields(data):
        if number == 2:
            dims = (dict(fields(as_bytes(dim))) for n, dim in fields(as_bytes(value)) if n == 2)
            shape = tuple(as_number(dim.get(1, 0)) for dim in budget.counted(dims, budget.AXES, "axes"))
        values[number] = value
    dtype, part, offset, size = (as_number(values.get(number, 0)) for number in (1, 3, 4, 5))
    return _Entry(dtype, shape, part, offset, size, is_sliced=7 in values)


def _array(name: str, entry: _Entry, parts: list[Path]) -> LazyArray:
    dtype, size = DTYPES[entry.dtype], entry.size
    shape = budget.shape(name, entry.shape, dtype)
    if entry.is_sliced:
        raise Refused(f"{name} is cut into slices")
    if entry.part >= len(parts) or size != dtype.itemsize * math.prod(shape):
        raise Refused(f"its index is damaged ({name} has {size} bytes and shape {shape})")
    path = parts[entry.part]
    if path.stat().st_size < entry.offset + size:
        raise Refused(f"{path.name} ends inside {name}")
    return in_file(path, entry.offset, shape, dtype.newbyteorder("<"))
