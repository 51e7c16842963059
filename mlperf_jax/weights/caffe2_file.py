"""Reads the weights that Detectron published, without running anything that is in them.

Such a file (MSRA's R-50.pkl among them) is one pickle of Python 2: a dict of NumPy's arrays by Caffe2's names, alone or
under "blobs", which `mlperf_jax.pickles` takes apart. The numbers lie in the pickle itself, as text of one byte a
character, so that all of the file is in memory while it is read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_jax import pickles
from mlperf_jax.errors import Refused
from mlperf_jax.pickles import Note
from mlperf_jax.weights import budget
from mlperf_jax.weights.lazy import LazyArray

START = b"\x80\x02}"
"""Of a dict in the pickle's protocol 2, which PyTorch's files do not begin with."""

_MOST_BYTES = 2**30
_DTYPES: dict[str, np.dtype] = {"f4": np.dtype("<f4"), "f8": np.dtype("<f8")}


def read(path: Path) -> dict[str, LazyArray]:
    """The arrays by name; of other things that are in the file, none.

    Raises:
        Refused: it is damaged, too large, or no such file.
    """
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise Refused(f"it is a pickle of more than {_MOST_BYTES:,} bytes")
    with path.open("rb") as file:
        tree = pickles.interpret(file, most=size, steps=budget.STEPS)
    if not isinstance(tree, dict):
        raise Refused("it holds no arrays by name")
    blobs = tree.get("blobs", tree)
    arrays = blobs.items() if isinstance(blobs, dict) else ()
    found = {name: _array(name, note) for name, note in arrays if _is_array(note)}
    if not found:
        raise Refused("it holds no arrays by name")
    return found


def _is_array(value: Any) -> bool:
    return isinstance(value, Note) and value.attribute == "_reconstruct" and isinstance(value.state, tuple)


def _array(name: str, note: Note) -> LazyArray:
    """What a call of NumPy's would have made: (version, shape, dtype, in Fortran's order, bytes)."""
    if len(note.state) != 5:
        raise Refused(f"its {name!r} is no array")
    _, sizes, kind, fortran, data = note.state
    dtype = _dtype(name, kind)
    if not isinstance(sizes, tuple):
        raise Refused(f"its {name!r} is no array")
    shape = budget.shape(name, sizes, dtype)
    content = data.encode("latin-1") if isinstance(data, str) else data
    if fortran or not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.itemsize:
        raise Refused(f"its {name!r} has not the bytes of an array {shape}")
    return LazyArray.of(np.frombuffer(content, dtype).reshape(shape))


def _dtype(name: str, kind: Any) -> np.dtype:
    """A dtype of little-endian floats."""
    known = isinstance(kind, Note) and kind.attribute == "dtype" and isinstance(kind.arguments, tuple)
    text = kind.arguments[0] if known and kind.arguments else None
    order = kind.state[1] if known and isinstance(kind.state, tuple) and len(kind.state) > 1 else "<"
    if not isinstance(text, str) or text.lstrip("<") not in _DTYPES or order != "<":
        raise Refused(f"its {name!r} has numbers of a kind that is not read")
    return _DTYPES[text.lstrip("<")]
