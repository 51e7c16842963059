"""Reads NumPy's .npz: a zip of arrays, each a header and numbers. What is pickled is refused."""

from __future__ import annotations

import functools
import math
import warnings
import zipfile
from pathlib import Path

from numpy.lib import format as npy

from mlperf_jax.errors import Refused
from mlperf_jax.weights import budget
from mlperf_jax.weights.lazy import LazyArray, in_file

_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read(path: Path) -> dict[str, LazyArray]:
    """The arrays by name.

    Raises:
        Refused, ValueError, OSError, zipfile.BadZipFile: it is damaged, or unfolds to far more than it has.
    """
    archive = zipfile.ZipFile(path)
    entries = list(budget.counted(archive.infolist(), budget.ARRAYS, "arrays"))
    if sum(entry.file_size for entry in entries) > budget.allowed(path.stat().st_size):
        raise Refused(f"its arrays unfold to more than {budget.EXPANSION} times the file")
    return {entry.filename.removesuffix(".npy"): _array(path, archive, entry) for entry in entries}


def _array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> LazyArray:
    name = entry.filename
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"its entry {name} is compressed in a way that NumPy does not")
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        if version not in _READ_HEADER:
            raise Refused(f"{name} is of an unknown version of NumPy's format")
        with warnings.catch_warnings():  # of the age of what wrote it
            warnings.simplefilter("ignore")
            sizes, is_fortran, dtype = _READ_HEADER[version](file)
        offset = file.tell()
    if dtype.hasobject:
        raise Refused(f"its entry {name} holds Python's objects")
    shape = budget.shape(name, sizes, dtype)
    if entry.file_size < offset + math.prod(shape) * dtype.itemsize:
        raise Refused(f"its entry {name} ends inside the array")
    opened = functools.partial(archive.open, entry)
    if is_fortran:
        return in_file(path, offset, shape[::-1], dtype, opened).T
    return in_file(path, offset, shape, dtype, opened)
