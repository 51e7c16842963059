"""Reads the constants of a frozen TensorFlow graph (.pb): what its variables were when it was frozen, by their names.

Field numbers are those of graph.proto, node_def.proto, attr_value.proto and tensor.proto in
tensorflow/core/framework (GraphDef, NodeDef, AttrValue, TensorProto). Nothing in it is executed.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import numpy as np

from mlperf_jax.errors import Refused
from mlperf_jax.weights import budget
from mlperf_jax.weights.lazy import LazyArray
from mlperf_jax.weights.protobuf import as_bytes, as_number, fields
from mlperf_jax.weights.tensorflow_file import DTYPES

START = b"\n"
"""The first byte of a graph: the key of its first node."""

_NOTHING = memoryview(b"")
_LISTS: dict[int, np.dtype] = {
    5: np.dtype("<f4"),
    6: np.dtype("<f8"),
}  # fields of numbers of four and of eight bytes


def read(path: Path) -> dict[str, LazyArray]:
    """The constants of numbers, by node.

    Raises:
        Refused: it is no graph, or damaged.
    """
    arrays: dict[str, LazyArray] = {}
    try:
        with path.open("rb") as file:
            graph = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        nodes = (as_bytes(value) for field, value in fields(graph) if field == 1)
        for node in budget.counted(nodes, budget.ARRAYS, "nodes"):
            arrays |= _constant(node)
    except (ValueError, IndexError, UnicodeDecodeError, TypeError) as error:
        raise Refused(
            str(error) if isinstance(error, Refused) else "it is no TensorFlow graph, or damaged"
        ) from None
    return arrays


def _constant(node: memoryview) -> dict[str, LazyArray]:
    """The array by its node's name; nothing of other nodes, and of constants that hold no numbers."""
    name, operator, value = "", b"", None
    for field, part in fields(node):
        if field == 1:
            name = bytes(as_bytes(part)).decode()
        elif field == 2:
            operator = bytes(as_bytes(part))
        elif field == 5:
            attribute = dict(fields(as_bytes(part)))
            if attribute.get(1) == b"value":
                value = dict(fields(as_bytes(attribute.get(2, _NOTHING)))).get(8)
    if operator != b"Const" or value is None:
        return {}
    array = _array(name, as_bytes(value))
    return {} if array is None else {name: array}


def _array(name: str, tensor: memoryview) -> LazyArray | None:
    kind, raw, sizes = 0, _NOTHING, list[int]()
    numbers: dict[int, bytearray] = {}
    for field, part in budget.counted(fields(tensor)):
        if field == 1:
            kind = as_number(part)
        elif field == 2:
            dims = (dict(fields(as_bytes(dim))) for n, dim in fields(as_bytes(part)) if n == 2)
            sizes = [as_number(dim.get(1, 0)) for dim in budget.counted(dims, budget.AXES, "axes")]
        elif field == 4:
            raw = as_bytes(part)
        elif field in _LISTS:
            numbers.setdefault(field, bytearray()).extend(as_bytes(part))
    if kind not in DTYPES:
        return None
    dtype: np.dtype = DTYPES[kind].newbyteorder("<")
    shape = budget.shape(name, sizes, dtype)
    array: np.ndarray = np.frombuffer(raw, dtype)
    for field, found in numbers.items():
        array = np.frombuffer(found, _LISTS[field])
        if array.size == 1:  # stands for all of them
            return LazyArray.of(np.broadcast_to(array.reshape(()), shape))
    expected = math.prod(shape)
    if expected and not array.size:
        return None  # whole numbers in a list: shapes and axes, which are no weights
    if array.size != expected:
        raise Refused(f"its constant {name!r} has {array.size} numbers where its shape is {shape}")
    return LazyArray.of(array.reshape(shape))
