"""Reads the table that pandas pickled, without pickle, pandas, or running anything that is in the file.

A pickle is a program for a stack machine that may call any function by name. Here `pickletools`
decodes it, which runs nothing, and a stack of our own notes what would have been called, with what.
From these notes the columns are read.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
from typing import Any

import numpy as np


class Refused(ValueError):
    """The bytes are damaged, or no pickled table of numbers and texts."""


@dataclasses.dataclass(eq=False)
class _Call:
    """What the pickle would call, by its name without its module, and the state that it would then set."""

    name: str
    arguments: Any = None
    state: Any = None


def read(data: bytes) -> dict[str, np.ndarray]:
    """Returns the columns by name, each [rows], in the numbers' own dtypes or object (str, or NaN for none).

    Args:
        data: what `DataFrame.to_pickle(compression=None)` wrote (pandas 1.3 and later).

    Raises:
        Refused: see there.
    """
    try:
        return _columns(_interpret(data))
    except Refused:
        raise
    except Exception as error:  # Whatever damage makes of the stack, or of the notes.
        raise Refused(f"not a table that pandas pickled ({error!r})") from None


def _columns(frame: Any) -> dict[str, np.ndarray]:
    manager = _called(frame, "DataFrame").state["_mgr"]
    blocks, (names, _) = _called(manager, "BlockManager").arguments
    names = _called(names, "_new_Index").arguments[1]["data"]
    columns: dict[str, np.ndarray] = {}
    names = _array(names)
    for block in blocks:
        values, places, _ = _called(block, "_unpickle_block").arguments
        for name, column in zip(names[_places(places)], _array(values), strict=True):
            columns[name] = column
    if not all(isinstance(name, str) for name in names) or set(columns) != set(names):
        raise Refused("not a table with a text for each column's name")
    return {name: columns[name] for name in names}


def _called(node: Any, name: str) -> _Call:
    """Modules are not compared: pandas and NumPy have moved these functions from one to another."""
    if not isinstance(node, _Call) or node.name != name:
        raise Refused(f"not a table that pandas pickled: where {name} belongs is another thing")
    return node


def _places(places: Any) -> Any:
    """Which columns a block holds, as pandas notes it: a slice or an array."""
    if isinstance(places, _Call) and places.name == "slice":
        return slice(*places.arguments)
    return _array(places)


def _array(node: Any) -> np.ndarray:
    """A NumPy array: raw numbers in a buffer, or a list of objects."""
    if isinstance(node, _Call) and node.name == "_frombuffer":
        buffer, dtype, shape, order = node.arguments
        return np.frombuffer(buffer, _dtype(dtype)).reshape(shape, order=order)
    if not isinstance(node, _Call) or node.name != "_reconstruct":
        raise Refused("not a table of plain NumPy arrays")
    _, shape, dtype, fortran, content = node.state
    if isinstance(content, bytes):
        return np.frombuffer(content, _dtype(dtype)).reshape(shape, order="F" if fortran else "C")
    if len(content) != math.prod(shape) or any(type(v) not in (str, float, type(None)) for v in content):
        raise Refused("a table with other objects than texts")
    flat = np.empty(len(content), object)
    flat[:] = content
    return flat.reshape(shape, order="F" if fortran else "C")


def _dtype(node: Any) -> np.dtype:
    kind = _called(node, "dtype").arguments[0]
    if kind[:1] not in ("f", "i", "u", "b") or (node.state and node.state[1] == ">"):
        raise Refused(f"a column of NumPy type {kind!r}")
    return np.dtype(kind)


_MARK = object()
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


def _interpret(data: bytes) -> Any:
    stack: list[Any] = []
    memo: list[Any] = []
    for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
        name = opcode.name
        if name in ("BINGET", "LONG_BINGET"):  # Nearly all there are.
            assert argument is not None
            stack.append(memo[argument])
        elif name == "MEMOIZE":
            memo.append(stack[-1])
        elif name == "STOP":
            return stack.pop()
        elif name in _VALUES:
            stack.append(argument)
        else:
            _step(name, stack)
    raise Refused("a pickle without an end")


def _step(name: str, stack: list[Any]) -> None:
    if name in ("PROTO", "FRAME"):
        return
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _EMPTY:
        stack.append(_EMPTY[name]())
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name in ("APPEND", "APPENDS"):
        values = [stack.pop()] if name == "APPEND" else _since_mark(stack)
        stack[-1].extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        values = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else _since_mark(stack)
        stack[-1].update(zip(values[::2], values[1::2], strict=True))
    elif name == "STACK_GLOBAL":
        name, _module = stack.pop(), stack.pop()
        stack.append(_Call(name))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments, function = stack.pop(), stack.pop()
        stack.append(_Call(function.name, arguments))
    elif name == "BUILD":
        state = stack.pop()
        stack[-1].state = state
    else:
        raise Refused(f"a pickle that uses {name}, which no table needs")


def _since_mark(stack: list[Any]) -> list[Any]:
    position = max(i for i, value in enumerate(stack) if value is _MARK)
    values = stack[position + 1 :]
    del stack[position:]
    return values
