"""Reads the table that pandas pickled, without pickle, pandas, or running anything that is in the file.

`mlperf_jax.pickles` notes what would have been called, with what; from these notes the columns are read.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np

from mlperf_jax import pickles
from mlperf_jax.errors import Refused
from mlperf_jax.pickles import Note

_MOST_STEPS = 16_000_000  # the texts of a column take one each, or two
_MOST_COLUMNS = 1000


def read(data: bytes) -> dict[str, np.ndarray]:
    """Returns the columns by name, each [rows], in the numbers' own dtypes or object (str, or NaN for none).

    Args:
        data: what `DataFrame.to_pickle(compression=None)` wrote (pandas 1.3 and later).

    Raises:
        Refused: see there.
    """
    try:
        return _columns(pickles.interpret(io.BytesIO(data), most=len(data), steps=_MOST_STEPS))
    except Refused:
        raise
    except Exception as error:  # Whatever damage makes of the notes.
        raise Refused(f"not a table that pandas pickled ({type(error).__name__})") from None


def _columns(frame: Any) -> dict[str, np.ndarray]:
    manager = _called(frame, "DataFrame").state["_mgr"]
    blocks, (names, _) = _called(manager, "BlockManager").arguments
    names = _called(names, "_new_Index").arguments[1]["data"]
    columns: dict[str, np.ndarray] = {}
    names = _array(names)
    if len(names) > _MOST_COLUMNS or len(blocks) > len(names):
        raise Refused("a table with too many columns")
    for block in blocks:
        values, places, _ = _called(block, "_unpickle_block").arguments
        for name, column in zip(names[_places(places)], _array(values), strict=True):
            columns[name] = column
    if not all(isinstance(name, str) for name in names) or set(columns) != set(names):
        raise Refused("not a table with a text for each column's name")
    return {name: columns[name] for name in names}


def _called(node: Any, name: str) -> Note:
    """Modules are not compared: pandas and NumPy have moved these functions from one to another."""
    if not isinstance(node, Note) or node.attribute != name:
        raise Refused(f"not a table that pandas pickled: where {name} belongs is another thing")
    return node


def _places(places: Any) -> Any:
    """Which columns a block holds, as pandas notes it: a slice or an array."""
    if isinstance(places, Note) and places.attribute == "slice":
        return slice(*places.arguments)
    return _array(places)


def _array(node: Any) -> np.ndarray:
    """A NumPy array: raw numbers in a buffer, or a list of objects."""
    if isinstance(node, Note) and node.attribute == "_frombuffer":
        buffer, dtype, shape, order = node.arguments
        return np.frombuffer(buffer, _dtype(dtype)).reshape(shape, order=order)
    if not isinstance(node, Note) or node.attribute != "_reconstruct":
        raise Refused("not a table of plain NumPy arrays")
    _, shape, dtype, fortran, content = node.state
    if isinstance(content, bytes):
        return np.frombuffer(content, _dtype(dtype)).reshape(shape, order="F" if fortran else "C")
    if (
        len(shape) > 2
        or len(content) != math.prod(shape)
        or any(type(v) not in (str, float, type(None)) for v in content)
    ):
        raise Refused("a table with other objects than texts")
    flat = np.empty(len(content), object)
    flat[:] = content
    return flat.reshape(shape, order="F" if fortran else "C")


def _dtype(node: Any) -> np.dtype:
    kind = _called(node, "dtype").arguments[0]
    if not isinstance(kind, str) or not re.fullmatch("[fiu][1248]|b1", kind):
        raise Refused("a column of another NumPy type than plain numbers")
    if node.state and node.state[1] == ">":
        raise Refused("a column of big-endian numbers")
    return np.dtype(kind)
