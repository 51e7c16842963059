"""Reads the weights of an ONNX file: a protobuf, of which a few fields are needed.

Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto). Weights are
named as in PyTorch: its exporter keeps the names of parameters, but where it folds a batch norm into
the convolution before it, or turns a linear layer's matrix around, only the node still tells the module
(`/layer1/layer1.0/conv1/Conv`), or the bias that is added. What other exporters name says nothing of the kind; there
layers are numbered by their place in the graph (`onnx_layers`).
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

from mlperf_jax.errors import Refused
from mlperf_jax.weights import budget, onnx_layers
from mlperf_jax.weights.lazy import LazyArray
from mlperf_jax.weights.onnx_layers import Node
from mlperf_jax.weights.protobuf import as_bytes, as_number, fields, varints

# TensorProto.DataType -> dtype, and the field that holds the numbers where raw_data does not.
_DTYPES = {
    1: (np.dtype(np.float32), 4),
    2: (np.dtype(np.uint8), 5),
    3: (np.dtype(np.int8), 5),
    4: (np.dtype(np.uint16), 5),
    5: (np.dtype(np.int16), 5),
    6: (np.dtype(np.int32), 5),
    7: (np.dtype(np.int64), 7),
    9: (np.dtype(np.bool_), 5),
    10: (np.dtype(np.float16), 5),
    11: (np.dtype(np.float64), 10),
    12: (np.dtype(np.uint32), 11),
    13: (np.dtype(np.uint64), 11),
    16: (np.dtype(ml_dtypes.bfloat16), 5),
    17: (np.dtype(ml_dtypes.float8_e4m3fn), 5),
    19: (np.dtype(ml_dtypes.float8_e5m2), 5),
}
_VARINTS = (5, 7, 11)


def read(path: Path) -> dict[str, LazyArray]:
    """The weights by PyTorch's names, or by `onnx_layers.numbered`'s where the file has none.

    Raises:
        Refused: see there.
    """
    try:
        # Mapped, so that what is passed over is not read, and what was read need not stay.
        with path.open("rb") as file:
            model = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        (graph,) = (value for field, value in fields(model) if field == 7)
        tensors: dict[str, LazyArray] = {}
        nodes: list[Node] = []
        for field, value in budget.counted(fields(as_bytes(graph)), budget.ARRAYS, "nodes and tensors"):
            if field == 5:
                tensors |= _tensor(as_bytes(value))
            elif field == 1:
                node, constants = _node(as_bytes(value))
                tensors |= constants
                nodes.append(node)
    except (ValueError, IndexError, UnicodeDecodeError, TypeError, struct.error) as error:
        raise Refused(
            str(error) if isinstance(error, Refused) else "it is no ONNX model, or damaged"
        ) from None
    named = _by_bias(nodes, _by_module(nodes, tensors))
    if any(name.endswith(".weight") for name in named):
        return named | onnx_layers.scales(nodes, tensors)
    return named | onnx_layers.numbered(nodes, tensors)


def _by_module(nodes: list[Node], tensors: dict[str, LazyArray]) -> dict[str, LazyArray]:
    """The tensors; those that a node of PyTorch's reads are named after its module."""
    tensors, named = dict(tensors), {}
    for node in nodes:
        module = _module(node.name)
        if node.operator not in onnx_layers.OPERATORS or not module:
            continue
        for suffix, source in zip((".weight", ".bias"), node.inputs[1:3], strict=False):
            if source in tensors and source not in (module + ".weight", module + ".bias"):
                array = tensors.pop(source)
                named[module + suffix] = array.T if node.operator == "MatMul" else array
    return tensors | named


def _by_bias(nodes: list[Node], tensors: dict[str, LazyArray]) -> dict[str, LazyArray]:
    """The tensors; a nameless matrix of a product, to which X.bias is added, is the transpose of X.weight."""
    tensors = dict(tensors)
    matrix: dict[str, str] = {}  # of a product's output the name of its matrix
    for node in nodes:
        if node.operator == "MatMul" and len(node.inputs) == 2 and node.inputs[1] in tensors:
            matrix |= dict.fromkeys(node.outputs, node.inputs[1])
        elif node.operator == "Add":
            bias = next((name for name in node.inputs if name.endswith(".bias")), "")
            product = next((name for name in node.inputs if name in matrix), "")
            if bias in tensors and matrix.get(product, "") in tensors:
                tensors[bias.removesuffix("bias") + "weight"] = tensors.pop(matrix[product]).T
    return tensors


def _tensor(data: memoryview) -> dict[str, LazyArray]:
    """The array by its name; nothing of texts and packed kinds, which are no weights."""
    shape: list[int] = []
    name, kind = "", 0
    raw: memoryview | None = None
    lists: dict[int, bytearray] = {}
    for field, value in budget.counted(fields(data)):
        if field == 1:
            shape += [value] if isinstance(value, int) else varints(value[: budget.AXES * 10 + 1]).tolist()
            if len(shape) > budget.AXES:
                raise Refused("it has a tensor with too many dimensions")
        elif field == 2:
            kind = as_number(value)
        elif field == 8:
            name = bytes(as_bytes(value)).decode()
        elif field == 9:
            raw = as_bytes(value)
        elif field == 14 and value:
            raise Refused("its weights lie in other files; save it as one file")
        elif isinstance(value, memoryview):
            lists.setdefault(field, bytearray()).extend(value)
        elif field in _VARINTS:
            lists.setdefault(field, bytearray()).extend(_varint(value))
    if kind not in _DTYPES:
        return {}
    dtype, field = _DTYPES[kind]
    sizes = budget.shape(name, shape, dtype)
    little = dtype.newbyteorder("<")
    if raw is not None:
        array = np.frombuffer(raw, little)
    elif field in _VARINTS:
        # Half a number of 32 bits, or a quarter: what it is in memory, whatever it means.
        bits = np.dtype(f"u{dtype.itemsize}") if dtype.kind in "fV" else dtype
        array = varints(bytes(lists.get(field, b""))).astype(bits).view(dtype)
    else:
        array = np.frombuffer(lists.get(field, bytearray()), little)
    if array.size != math.prod(sizes):
        raise Refused(f"its tensor {name!r} has {array.size} numbers where its shape is {sizes}")
    return {name: LazyArray.of(array.reshape(sizes))}


def _varint(value: int) -> bytes:
    """A number as it stands among others in a packed field."""
    octets = bytearray()
    while value > 127:
        octets.append(value & 127 | 128)
        value >>= 7
    return bytes([*octets, value])


def _node(data: memoryview) -> tuple[Node, dict[str, LazyArray]]:
    """A node, and the constant by its name where it is one."""
    name, operator, inputs, outputs = "", "", [], []
    given: dict[str, dict[int, int | memoryview]] = {}
    for field, value in fields(data):
        if field == 1:
            inputs.append(bytes(as_bytes(value)).decode())
        elif field == 2:
            outputs.append(bytes(as_bytes(value)).decode())
        elif field == 3:
            name = bytes(as_bytes(value)).decode()
        elif field == 4:
            operator = bytes(as_bytes(value)).decode()
        elif field == 5:
            attribute = dict(fields(as_bytes(value)))
            given[bytes(as_bytes(attribute.get(1, memoryview(b"")))).decode()] = attribute
    constants: dict[str, LazyArray] = {}
    if operator == "Constant" and outputs and 5 in given.get("value", {}):
        constants = dict(zip(outputs[:1], _tensor(as_bytes(given["value"][5])).values(), strict=False))
    epsilon = given.get("epsilon", {}).get(2)
    node = Node(
        name,
        operator,
        tuple(inputs),
        tuple(outputs),
        epsilon=onnx_layers.EPSILON if epsilon is None else struct.unpack("<f", as_bytes(epsilon))[0],
        is_transposed=bool(given.get("transB", {}).get(3, 0)),
    )
    return node, constants


def _module(node: str) -> str:
    """ "layer1.0.downsample.0" of "/layer1/layer1.0/downsample/downsample.0/Conv"; "" of other exporters' names."""
    first, *scopes = node.split("/")
    path: list[str] = []
    for scope in [] if first else scopes[:-1]:
        if path and scope.startswith(path[-1] + "."):
            path[-1] = scope
        else:
            path.append(scope)
    return ".".join(path)
