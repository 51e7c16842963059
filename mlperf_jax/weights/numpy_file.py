"""Reads NumPy's .npz: a zip of arrays, each a header and numbers. What is pickled is refused."""

from __future__ import annotations

import functools
import math
import zipfile
from pathlib import Path

from numpy.lib import format as npy

from mlperf_jax.weights.lazy import LazyArray, in_file

_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read(path: Path) -> dict[str, LazyArray]:
    """The arrays by name.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: it is damaged, or holds Python's objects.
    """
    archive = zipfile.ZipFile(path)
    return {entry.filename.removesuffix(".npy"): _array(path, archive, entry) for entry in archive.infolist()}


def _array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> LazyArray:
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        if version not in _READ_HEADER:
            raise ValueError(f"{entry.filename} is of an unknown version of NumPy's format")
        shape, is_fortran, dtype = _READ_HEADER[version](file)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    if entry.file_size < offset + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"its entry {entry.filename} ends inside the array")
    opened = functools.partial(archive.open, entry)
    if is_fortran:
        return in_file(path, offset, shape[::-1], dtype, opened).T
    return in_file(path, offset, shape, dtype, opened)
