"""NIfTI-1 files of one volume, plain or gzipped: the numbers and the size of a voxel; nothing else of the header.

Format: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h. What a header claims is checked before anything
of its size is read or made.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from mlperf_jax.errors import UserError

_HEADER_BYTES = 348
_MOST_BYTES = 2**32  # of a volume's numbers as they are in the file; KiTS19's largest has 0.6 GB
_MOST_OFFSET = 2**20  # of extensions before them

_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}


class Volume(NamedTuple):
    """What a file holds.

    Attributes:
        values: [X, Y, Z] in the file's own dtype, or float64 where the header scales them.
        spacing: of voxels along each axis, in the file's unit, usually mm.
    """

    values: np.ndarray
    spacing: tuple[float, float, float]


class _Header(NamedTuple):
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float


def read(path: Path) -> Volume:
    """Reads a `.nii` or `.nii.gz` file.

    Raises:
        UserError: it is not there, damaged, or of a kind that is not read.
    """
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                return _read(raw)
            with gzip.open(raw) as stream:
                return _read(stream)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); get it again.") from None
    except (ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole NIfTI-1 file ({error}); get it again.") from None


def parse(content: bytes, name: str) -> Volume:
    """The same of a file's content, already unpacked.

    Raises:
        UserError: as `read`.
    """
    import io

    try:
        return _read(io.BytesIO(content))
    except ValueError as error:
        raise UserError(f"{name} is no whole NIfTI-1 file ({error}); get it again.") from None


def _read(stream: BinaryIO | gzip.GzipFile) -> Volume:
    header = _header(stream.read(_HEADER_BYTES))
    stream.read(header.offset - _HEADER_BYTES)
    size = math.prod(header.shape) * header.dtype.itemsize
    content = bytearray()
    while len(content) < size:  # in pieces: a short file must not cost what its header claims
        piece = stream.read(min(size - len(content), 2**24))
        if not piece:
            raise ValueError(f"it ends after {len(content):,} of {size:,} bytes")
        content += piece
    values = np.frombuffer(bytes(content), header.dtype).reshape(header.shape, order="F")
    if (header.slope, header.intercept) not in ((0.0, 0.0), (1.0, 0.0)) and header.slope:
        values = values * header.slope + header.intercept
    elif not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    return Volume(values, header.spacing)


def _header(raw: bytes) -> _Header:
    if len(raw) < _HEADER_BYTES:
        raise ValueError("it is shorter than a header")
    order = next((o for o in "<>" if struct.unpack_from(f"{o}i", raw) == (_HEADER_BYTES,)), None)
    if order is None or raw[344:348] != b"n+1\0":
        raise ValueError("it does not begin as one")
    rank, *sizes = struct.unpack_from(f"{order}8h", raw, 40)
    if not 3 <= rank <= 7 or any(size != 1 for size in sizes[3:rank]):
        raise ValueError("it holds no single volume")
    x, y, z = sizes[:3]
    code, _ = struct.unpack_from(f"{order}2h", raw, 70)
    if code not in _DTYPES:
        raise ValueError(f"its type {code} is none of {', '.join(map(str, _DTYPES))}")
    dtype = np.dtype(order + _DTYPES[code])
    if min(x, y, z) < 1 or x * y * z * dtype.itemsize > _MOST_BYTES:
        raise ValueError(f"it claims a volume of {x} x {y} x {z}")
    _, *spacing = struct.unpack_from(f"{order}4f", raw, 76)
    if not all(math.isfinite(s) and 0 < s < 1e6 for s in spacing):
        raise ValueError(f"its voxels are {' x '.join(f'{s:g}' for s in spacing)}")
    offset, slope, intercept = struct.unpack_from(f"{order}3f", raw, 108)
    if not (math.isfinite(offset) and _HEADER_BYTES <= offset <= _MOST_OFFSET):
        raise ValueError(f"its numbers begin at {offset:g}")
    if not (math.isfinite(slope) and math.isfinite(intercept)):  # as good as none
        slope, intercept = 0.0, 0.0
    return _Header((x, y, z), (spacing[0], spacing[1], spacing[2]), dtype, int(offset), slope, intercept)
