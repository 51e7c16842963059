"""Reads the weights of an ONNX file: a protobuf, of which a few fields are needed.

Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto). Weights are
named as in PyTorch: exporters keep the names of parameters, but where they fold a batch norm into
the convolution before it, only the node still tells the module: `/layer1/layer1.0/conv1/Conv`.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import ml_dtypes
import numpy as np

from mlperf_jax.weights.lazy import LazyArray
from mlperf_jax.weights.protobuf import Refused, as_bytes, as_number, fields, varint

# TensorProto.DataType -> dtype, and the field that holds the numbers where raw_data does not.
_DTYPES = {
    1: (np.dtype(np.float32), 4),
    6: (np.dtype(np.int32), 5),
    7: (np.dtype(np.int64), 7),
    10: (np.dtype(np.float16), 0),
    11: (np.dtype(np.float64), 10),
    16: (np.dtype(ml_dtypes.bfloat16), 0),
}
_WITH_WEIGHTS = ("Conv", "Gemm", "MatMul")


def read(path: Path) -> dict[str, LazyArray]:
    """The weights by PyTorch's names.

    Raises:
        Refused: see there.
    """
    try:
        # Mapped, so that what is passed over is not read, and what was read need not stay.
        with path.open("rb") as file:
            model = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        (graph,) = (value for field, value in fields(model) if field == 7)
        tensors, nodes = {}, []
        for field, value in fields(as_bytes(graph)):
            if field == 5:
                name, array = _tensor(as_bytes(value))
                tensors[name] = array
            elif field == 1:
                nodes.append(_node(as_bytes(value)))
    except (ValueError, IndexError, UnicodeDecodeError, TypeError) as error:
        raise Refused(
            str(error) if isinstance(error, Refused) else "it is no ONNX model, or damaged"
        ) from None
    named: dict[str, LazyArray] = {}
    for name, operator, inputs in nodes:
        module = _module(name)
        if operator not in _WITH_WEIGHTS or not module:
            continue
        for suffix, source in zip((".weight", ".bias"), inputs[1:3], strict=False):
            if source in tensors and source not in (module + ".weight", module + ".bias"):
                named[module + suffix] = tensors.pop(source)
    return tensors | named


def _tensor(data: memoryview) -> tuple[str, LazyArray]:
    shape: list[int] = []
    name, kind = "", 0
    raw: memoryview | None = None
    lists: dict[int, bytes] = {}
    for field, value in fields(data):
        if field == 1:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif field == 2:
            kind = as_number(value)
        elif field == 8:
            name = bytes(as_bytes(value)).decode()
        elif field == 9:
            raw = as_bytes(value)
        elif field == 14 and value:
            raise Refused("its weights lie in other files; save it as one file")
        elif isinstance(value, memoryview):
            lists[field] = lists.get(field, b"") + bytes(value)
    if kind not in _DTYPES:
        return name, LazyArray.of(np.zeros(0, np.float32))  # text or flags, which are no weights
    dtype, field = _DTYPES[kind]
    if raw is not None:
        array = np.frombuffer(raw, dtype.newbyteorder("<"))
    elif field in (5, 7):
        array = np.array(_varints(memoryview(lists.get(field, b""))), np.uint64).astype(dtype)
    else:
        array = np.frombuffer(lists.get(field, b""), dtype.newbyteorder("<"))
    if array.size != math.prod(shape):
        raise Refused(f"its tensor {name!r} has {array.size} numbers where its shape is {tuple(shape)}")
    return name, LazyArray.of(array.reshape(shape))


def _varints(data: memoryview) -> list[int]:
    values, position = [], 0
    while position < len(data):
        value, position = varint(data, position)
        values.append(value)
    return values


def _node(data: memoryview) -> tuple[str, str, list[str]]:
    """(name, operator, names of the inputs)"""
    name, operator, inputs = "", "", []
    for field, value in fields(data):
        if field == 1:
            inputs.append(bytes(as_bytes(value)).decode())
        elif field == 3:
            name = bytes(as_bytes(value)).decode()
        elif field == 4:
            operator = bytes(as_bytes(value)).decode()
    return name, operator, inputs


def _module(node: str) -> str:
    """ "layer1.0.downsample.0" of "/layer1/layer1.0/downsample/downsample.0/Conv"; "" of other names."""
    *scopes, _ = node.split("/")[1:] or [""]
    path: list[str] = []
    for scope in scopes:
        if path and scope.startswith(path[-1] + "."):
            path[-1] = scope
        else:
            path.append(scope)
    return ".".join(path)
