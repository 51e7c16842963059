"""Reads and writes safetensors: the length of a JSON header, the header, and arrays by byte range.

Source: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from mlperf_jax.errors import Refused
from mlperf_jax.weights import budget
from mlperf_jax.weights.lazy import LazyArray, Tensor, in_file

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "C64": np.dtype(np.complex64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def read(path: Path) -> dict[str, LazyArray]:
    """The arrays by name.

    Raises:
        Refused: it is damaged.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > budget.DESCRIPTION:
        raise Refused("it is damaged, or its header too large")
    try:
        # The library holds the header against the file: every array lies in it, and none in another.
        with safetensors.safe_open(path, "numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise Refused(f"it is damaged ({error})") from None
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    arrays: dict[str, LazyArray] = {}
    for name, entry in budget.counted(header.items(), budget.ARRAYS, "arrays"):
        if entry["dtype"] not in _DTYPES:
            raise Refused(f"{name} is of {entry['dtype']}, a dtype that is not read")
        dtype = _DTYPES[entry["dtype"]]
        shape = budget.shape(name, entry["shape"], dtype)
        arrays[name] = in_file(path, 8 + length + entry["data_offsets"][0], shape, dtype)
    return arrays


def write(path: Path, arrays: Mapping[str, Tensor]) -> None:
    """Writes the arrays, of which one at a time is in memory."""
    # The widest first, so that each begins at a multiple of its numbers' size, as the library has it.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header, end = {}, 0
    for name in names:
        array, start = arrays[name], end
        end += array.nbytes
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            # The order of C, whatever the array's own in memory.
            file.write(np.asarray(arrays[name]).reshape(-1).view(np.uint8).data)
