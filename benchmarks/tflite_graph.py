"""Runs a TensorFlow Lite graph in NumPy, operator by operator, and writes small ones: the judge of their reader and model.

Only the format itself is shared with `mlperf_jax.weights.tflite_file`; what an operator does is read from the file here, and
nothing is known of any model. Source: tensorflow/lite/schema/schema.fbs, and for what operators do tensorflow/lite/kernels.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_jax.weights import tflite_file as tflite
from mlperf_jax.weights.flatbuffer import Table

ADD, CONCATENATION, RESHAPE = 0, 2, 22
NO_ACTIVATION, RELU, RELU6 = 0, 1, 3
SAME = 0
OPTIONS = 4
_ACTIVATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    NO_ACTIVATION: lambda x: x,
    RELU: lambda x: np.maximum(x, 0),
    RELU6: lambda x: np.clip(x, 0, 6),
}


class Interpreter:
    """A graph of convolutions, sums and what moves numbers.

    Args:
        path: the file.
        dtype: in which it is computed; constants of 16 bits become such too.
    """

    def __init__(self, path: Path, dtype: type = np.float64) -> None:
        data = memoryview(path.read_bytes())
        model = Table.root(data)
        (graph,) = model.tables(tflite.SUBGRAPHS)
        self._codes = tflite.operator_codes(model)
        self._operators = list(graph.tables(tflite.OPERATORS))
        self._inputs, self._outputs = (
            graph.numbers(field, tflite.INTS).tolist() for field in (tflite.INPUTS, tflite.OUTPUTS)
        )
        self._dtype = dtype
        buffers = list(model.tables(tflite.BUFFERS))
        self._constants: dict[int, np.ndarray] = {}
        for i, tensor in enumerate(graph.tables(tflite.TENSORS)):
            raw = buffers[tensor.number(tflite.BUFFER, "I")].numbers(tflite.DATA, np.dtype(np.uint8))
            if raw.size:
                found = raw.view(tflite.DTYPES[tensor.number(tflite.KIND, "b")])
                found = found.reshape(tensor.numbers(tflite.SHAPE, tflite.INTS))
                self._constants[i] = found.astype(dtype) if found.dtype.kind == "f" else found

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        """The outputs, in the file's order, of one input [1, ...]."""
        values = dict(self._constants)
        values[self._inputs[0]] = image.astype(self._dtype)
        for operator in self._operators:
            reads, writes = (operator.numbers(f, tflite.INTS).tolist() for f in (tflite.READS, tflite.WRITES))
            code = self._codes[operator.number(tflite.CODE, "I")]
            values[writes[0]] = _OPERATORS[code]([values[i] for i in reads], operator.table(OPTIONS))
        return [values[i] for i in self._outputs]


def _padded(x: np.ndarray, window: Sequence[int], strides: Sequence[int], padding: int) -> np.ndarray:
    if padding != SAME:
        return x
    pads = [(0, 0)]
    for size, width, stride in zip(x.shape[1:3], window, strides, strict=True):
        lacking = max((-(-size // stride) - 1) * stride + width - size, 0)
        pads.append((lacking // 2, lacking - lacking // 2))
    return np.pad(x, [*pads, (0, 0)])


def _windows(x: np.ndarray, window: Sequence[int], options: Table) -> np.ndarray:
    """[1, H, W, C] to [1, H', W', C, h, w]; both kinds of convolution have padding and strides in the same fields."""
    across, down = options.number(1, "i"), options.number(2, "i")
    x = _padded(x, window, (down, across), options.number(0, "b"))
    return np.lib.stride_tricks.sliding_window_view(x, tuple(window), axis=(1, 2))[:, ::down, ::across]


def _conv(inputs: list[np.ndarray], options: Table) -> np.ndarray:
    x, weight, bias = inputs
    seen = _windows(x, weight.shape[1:3], options)
    return _ACTIVATIONS[options.number(3, "b")](np.tensordot(seen, weight, ([3, 4, 5], [3, 1, 2])) + bias)


def _depthwise(inputs: list[np.ndarray], options: Table) -> np.ndarray:
    x, weight, bias = inputs
    seen = _windows(x, weight.shape[1:3], options)
    return _ACTIVATIONS[options.number(4, "b")](np.einsum("nyxchw,hwc->nyxc", seen, weight[0]) + bias)


def _add(inputs: list[np.ndarray], options: Table | None) -> np.ndarray:
    return _ACTIVATIONS[options.number(0, "b") if options else NO_ACTIVATION](inputs[0] + inputs[1])


def _reshape(inputs: list[np.ndarray], options: Table | None) -> np.ndarray:
    return inputs[0].reshape(inputs[1].tolist())


_OPERATORS: Mapping[int, Callable[..., np.ndarray]] = {
    ADD: _add,
    CONCATENATION: lambda inputs, options: np.concatenate(inputs, options.number(0, "i")),
    tflite.CONV: _conv,
    tflite.DEPTHWISE: _depthwise,
    tflite.DEQUANTIZE: lambda inputs, options: inputs[0],
    RESHAPE: _reshape,
}


Fields = dict[int, Any]
"""A table to be written: field -> a number with its kind as ("i", 3), an array, a table, a list of tables."""


class Graph:
    """Writes a TFLite model operator by operator.

    Args:
        shape: of its input.
    """

    def __init__(self, *shape: int) -> None:
        self._buffers: list[Fields] = [{}]  # the first is that of all that is computed
        self._tensors: list[Fields] = []
        self._operators: list[Fields] = []
        self._codes: list[int] = []
        self.input = self._tensor(shape)

    def _tensor(self, shape: Sequence[int], kind: int = 0, buffer: int = 0) -> int:
        sizes = np.array(shape, tflite.INTS)
        self._tensors.append({tflite.SHAPE: sizes, tflite.KIND: ("b", kind), tflite.BUFFER: ("I", buffer)})
        return len(self._tensors) - 1

    def constant(self, array: np.ndarray) -> int:
        kind = next(kind for kind, dtype in tflite.DTYPES.items() if dtype == array.dtype)
        self._buffers.append({tflite.DATA: np.frombuffer(array.tobytes(), np.uint8)})
        return self._tensor(array.shape, kind, len(self._buffers) - 1)

    def half(self, array: np.ndarray) -> int:
        """A constant of 16 bits, which the graph makes 32 of."""
        return self.operator(tflite.DEQUANTIZE, [self.constant(array.astype("<f2"))], array.shape)

    def operator(
        self, code: int, reads: Sequence[int], shape: Sequence[int], options: Fields | None = None
    ) -> int:
        """Adds an operator; returns what it gives."""
        if code not in self._codes:
            self._codes.append(code)
        out = self._tensor(shape)
        fields: Fields = {
            tflite.CODE: ("I", self._codes.index(code)),
            tflite.READS: np.array(reads, tflite.INTS),
            tflite.WRITES: np.array([out], tflite.INTS),
        }
        if options is not None:
            fields[OPTIONS] = options
        self._operators.append(fields)
        return out

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(self._tensors[tensor][tflite.SHAPE].tolist())

    def conv(
        self, x: int, weight: np.ndarray, bias: np.ndarray, *, stride: int = 1, activation: int = RELU6,
        depthwise: bool = False,
    ) -> int:  # fmt: skip
        """A convolution with weights [O, h, w, I], a depthwise one with [1, h, w, O], padded as SAME."""
        batch, height, width, _ = self.shape(x)
        options: Fields = {0: ("b", SAME), 1: ("i", stride), 2: ("i", stride)}
        options |= {3: ("i", 1), 4: ("b", activation)} if depthwise else {3: ("b", activation)}
        shape = (batch, -(-height // stride), -(-width // stride), len(bias))
        code = tflite.DEPTHWISE if depthwise else tflite.CONV
        return self.operator(code, [x, self.half(weight), self.half(bias)], shape, options)

    def reshape(self, x: int, *shape: int) -> int:
        return self.operator(RESHAPE, [x, self.constant(np.array(shape, tflite.INTS))], shape)

    def concatenate(self, parts: Sequence[int]) -> int:
        batch, _, *rest = self.shape(parts[0])
        shape = (batch, sum(self.shape(part)[1] for part in parts), *rest)
        return self.operator(CONCATENATION, parts, shape, {0: ("i", 1)})

    def write(self, path: Path, outputs: Sequence[int]) -> None:
        graph = {
            tflite.TENSORS: self._tensors,
            tflite.INPUTS: np.array([self.input], tflite.INTS),
            tflite.OUTPUTS: np.array(outputs, tflite.INTS),
            tflite.OPERATORS: self._operators,
        }
        codes = [{tflite.OLD_CODE: ("b", code), tflite.NEW_CODE: ("i", code)} for code in self._codes]
        model = {
            0: ("I", 3),
            tflite.OPERATOR_CODES: codes,
            tflite.SUBGRAPHS: [graph],
            tflite.BUFFERS: self._buffers,
        }
        path.write_bytes(flatbuffer(model))


def flatbuffer(root: Fields) -> bytes:
    """A buffer with the identifier of TFLite; what a table points to follows it."""
    out = bytearray(4) + tflite.MAGIC
    _point(out, 0, _put(out, root))
    return bytes(out)


def _point(out: bytearray, place: int, target: int) -> None:
    struct.pack_into("<I", out, place, target - place)


def _put(out: bytearray, value: Any) -> int:
    """Appends a table or a list; returns where it begins."""
    if isinstance(value, dict):
        return _put_table(out, value)
    if isinstance(value, list):
        start = _aligned(out, 4)
        out += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for i, item in enumerate(value):
            _point(out, start + 4 + 4 * i, _put(out, item))
        return start
    start = _aligned(out, 16, before=4)
    out += struct.pack("<I", len(value)) + value.tobytes()
    return start


def _put_table(out: bytearray, fields: Fields) -> int:
    """Every field has four bytes."""
    count = max(fields, default=-1) + 1
    _aligned(out, 4)
    table = len(out) + -(-(4 + 2 * count) // 4) * 4
    places = {field: 4 + 4 * i for i, field in enumerate(fields)}
    out += struct.pack("<HH", 4 + 2 * count, 4 + 4 * len(fields))
    out += struct.pack(f"<{count}H", *(places.get(field, 0) for field in range(count)))
    _aligned(out, 4)
    out += struct.pack("<i", 4 + -(-(2 * count) // 4) * 4) + bytes(4 * len(fields))
    for field, value in fields.items():
        place = table + places[field]
        if isinstance(value, tuple):
            struct.pack_into("<" + value[0], out, place, value[1])
        else:
            _point(out, place, _put(out, value))
    return table


def _aligned(out: bytearray, to: int, before: int = 0) -> int:
    """Pads so that what comes `before` bytes later lies at a multiple of `to`."""
    out += bytes(-(len(out) + before) % to)
    return len(out)
