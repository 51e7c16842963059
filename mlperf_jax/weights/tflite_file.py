"""Reads the weights of a TensorFlow Lite file (.tflite): a FlatBuffer, of which a few fields are needed.

Field numbers are those of tensorflow/lite/schema/schema.fbs (Model, SubGraph, Tensor, Operator, Buffer). Names in such a
file tell little, for one converted convolution may be named after several nodes; layers are known by their place in the graph,
as in an ONNX graph without names (`onnx_layers`): graph.0.weight [O, I, h, w], graph.0.bias, ... Numbers of 16 bits that
the graph itself makes 32 of first stay 16 here until they are taken. A quantised layer is refused.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlperf_jax.errors import Refused
from mlperf_jax.weights import budget, onnx_layers
from mlperf_jax.weights.flatbuffer import Table
from mlperf_jax.weights.lazy import LazyArray
from mlperf_jax.weights.onnx_layers import Node

MAGIC = b"TFL3"
"""The bytes 4 to 8 of a file."""

# Of Model, SubGraph, Tensor, Operator, OperatorCode and Buffer.
OPERATOR_CODES, SUBGRAPHS, BUFFERS = 1, 2, 4
TENSORS, INPUTS, OUTPUTS, OPERATORS = 0, 1, 2, 3
SHAPE, KIND, BUFFER, SPARSITY = 0, 1, 2, 6
CODE, READS, WRITES = 0, 1, 2
OLD_CODE, NEW_CODE = 0, 3
DATA, FAR_AWAY = 0, 1

INTS: np.dtype = np.dtype("<i4")
DTYPES: dict[int, np.dtype] = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 2: INTS, 4: np.dtype("<i8")}
"""TensorType -> dtype, of what is read."""

CONV, DEPTHWISE, DENSE, DEQUANTIZE = 3, 4, 9, 6
# BuiltinOperator -> what ONNX calls it, of those that `onnx_layers` knows by name.
_NAMES = {
    0: "Add",
    18: "Mul",
    22: "Reshape",
    39: "Transpose",
    41: "Sub",
    42: "Div",
    43: "Squeeze",
    DEQUANTIZE: "Cast",
}


def read(path: Path) -> dict[str, LazyArray]:
    """The weights by the place of their layers.

    Raises:
        Refused: it is no such file, damaged, or of layers that are not plain numbers.
    """
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    model = Table.root(data)
    graphs = list(budget.counted(model.tables(SUBGRAPHS), 1, "graph"))
    if not graphs:
        raise Refused("it has no graph")
    constants = dict(_constants(model, graphs[0]))
    return onnx_layers.numbered(list(_nodes(model, graphs[0], constants)), constants)


def operator_codes(model: Table) -> list[int]:
    """The BuiltinOperator of each of a model's kinds of operators."""
    kinds = budget.counted(model.tables(OPERATOR_CODES), budget.ARRAYS, "kinds of operators")
    # A number of up to 127 stands in a field of its own, of files that are older than the other.
    return [max(kind.number(OLD_CODE, "b"), kind.number(NEW_CODE, "i")) for kind in kinds]


def _constants(model: Table, graph: Table) -> Iterator[tuple[str, LazyArray]]:
    """What is known of a graph's tensors beforehand, by their numbers."""
    buffers = list(budget.counted(model.tables(BUFFERS), budget.ARRAYS, "buffers"))
    tensors = budget.counted(graph.tables(TENSORS), budget.ARRAYS, "tensors")
    for i, tensor in enumerate(tensors):
        place = tensor.number(BUFFER, "I")
        if place >= len(buffers):
            raise Refused(f"its tensor {i} lies in a buffer that there is not")
        if buffers[place].number(FAR_AWAY, "Q") > 1:
            raise Refused("its numbers lie behind its graph; save it in one piece, below 2 GB")
        raw = buffers[place].numbers(DATA, np.dtype(np.uint8))
        dtype = DTYPES.get(tensor.number(KIND, "b"))
        if not raw.size or dtype is None:
            continue
        if tensor.has(SPARSITY):
            raise Refused(f"its tensor {i} is sparse")
        sizes = tensor.numbers(SHAPE, INTS)[: budget.AXES + 1].tolist()
        shape = budget.shape(str(i), sizes, dtype)
        if raw.size != math.prod(shape) * dtype.itemsize:
            raise Refused(f"its tensor {i} has {raw.size} bytes where its shape is {shape}")
        yield str(i), LazyArray.of(raw.view(dtype).reshape(shape))


def _nodes(model: Table, graph: Table, constants: dict[str, LazyArray]) -> Iterator[Node]:
    """The operators; weights are turned as ONNX has them, and put among the constants under names of their own."""
    codes = operator_codes(model)
    read_so_far = 0
    for i, operator in enumerate(budget.counted(graph.tables(OPERATORS), budget.ARRAYS, "operators")):
        code = operator.number(CODE, "I")
        if code >= len(codes):
            raise Refused(f"its operator {i} is of a kind that there is not")
        ends = [operator.numbers(field, INTS) for field in (READS, WRITES)]
        read_so_far += sum(end.size for end in ends)
        if read_so_far > budget.STEPS:
            raise Refused(f"its operators read more than {budget.STEPS:,} tensors")
        inputs, outputs = ([str(n) if n >= 0 else "" for n in end.tolist()] for end in ends)
        kind = codes[code]
        if kind == DEQUANTIZE and inputs[:1] and inputs[0] in constants:
            constants |= dict.fromkeys(outputs, constants[inputs[0]])
            continue
        name = _NAMES.get(kind, f"operator {kind}")
        if kind in (CONV, DEPTHWISE, DENSE):
            if len(inputs) < 2 or inputs[1] not in constants:
                raise Refused(
                    f"its layer {i} has no weights that are plain numbers; take the file that is not quantised"
                )
            name = "Gemm" if kind == DENSE else "Conv"
            weight = constants[inputs[1]]
            inputs[1] = f"weight {i}"
            constants[inputs[1]] = _as_onnx(weight, kind)
        yield Node(str(i), name, tuple(inputs), tuple(outputs), is_transposed=True)


def _as_onnx(weight: LazyArray, kind: int) -> LazyArray:
    """[O, h, w, I] of a convolution as [O, I, h, w], [1, h, w, O] of a depthwise one as [O, 1, h, w]."""
    if weight.ndim != (2 if kind == DENSE else 4):
        raise Refused("a layer's weights have a strange number of dimensions")
    if kind == DENSE:
        return weight
    return weight.transpose(*((0, 3, 1, 2) if kind == CONV else (3, 0, 1, 2)))
