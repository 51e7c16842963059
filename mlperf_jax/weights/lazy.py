"""Arrays that lie in files until they are asked for, whole or in part."""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from mlperf_jax.errors import Refused, UserError

Index = tuple[slice, ...]
"""A part of an array: for each axis where it starts and stops, in steps of 1."""

_TOLD = 300  # letters of what a file says, or a library of it
_BLOCK = 4 * 2**20  # bytes that are read at once where only a part of them is wanted


class LazyArray:
    """An array of which only shape and dtype are known until it is read.

    `np.asarray` reads it whole, `array[index]` a part; nothing is kept. `astype`, `transpose` and `reshape`
    are applied when it is read.

    Attributes:
        shape: its dimensions.
        dtype: of what is read.
    """

    def __init__(self, shape: Sequence[int], dtype: DTypeLike, read: Callable[[Index], np.ndarray]) -> None:
        """`read` gives a part in an array of its own, that keeps no more than the part in memory."""
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._read = read

    @classmethod
    def of(cls, array: np.ndarray) -> LazyArray:
        """What is in memory already, or in pages of a file that is mapped into it."""
        return cls(array.shape, array.dtype, lambda index: np.array(array[index]))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def T(self) -> LazyArray:
        return self.transpose(*reversed(range(self.ndim)))

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads a part.

        Raises:
            UserError: the file cannot be read.
        """
        bounds = [part.indices(n) for part, n in zip(index, self.shape, strict=True)]
        return self._read(tuple(slice(start, max(start, stop)) for start, stop, _ in bounds))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return self[(slice(None),) * self.ndim].astype(dtype or self.dtype, copy=False)

    def astype(self, dtype: DTypeLike) -> LazyArray:
        return LazyArray(self.shape, dtype, lambda index: self._read(index).astype(dtype, copy=False))

    def transpose(self, *axes: int) -> LazyArray:
        place = [axes.index(axis) for axis in range(self.ndim)]
        return LazyArray(
            [self.shape[axis] for axis in axes],
            self.dtype,
            lambda index: self._read(tuple(index[p] for p in place)).transpose(axes),
        )

    def reshape(self, *shape: int) -> LazyArray:
        """Of this the whole is read for any part."""
        return LazyArray(shape, self.dtype, lambda index: np.array(np.asarray(self).reshape(shape)[index]))


Tensor = np.ndarray | LazyArray


def place(array: Tensor, where: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """The array in the dtype and place of `where`: a process reads what its own devices hold.

    Raises:
        UserError: the file cannot be read.
    """
    return jax.make_array_from_callback(
        where.shape,
        where.sharding,
        lambda index: np.asarray(array[index or ()]).astype(where.dtype, copy=False),
    )


def shifted(array: Tensor, by: float) -> LazyArray:
    """The array with a number added to all of its own, when it is read."""
    return LazyArray(array.shape, array.dtype, lambda index: (array[index] + by).astype(array.dtype))


def without_first(array: Tensor) -> LazyArray:
    """The array without its first row, whose whole is read for any part."""
    rows, *rest = array.shape
    return LazyArray((rows - 1, *rest), array.dtype, lambda index: np.array(np.asarray(array)[1:][index]))


def mirrored(array: Tensor, axis: int) -> LazyArray:
    """The array with an axis turned round, whose whole is read for any part."""
    return LazyArray(
        array.shape, array.dtype, lambda index: np.array(np.flip(np.asarray(array), axis)[index])
    )


def parted(array: Tensor, axis: int, sizes: tuple[int, int]) -> LazyArray:
    """The array with an axis as two of these sizes; of the first no others are read than those of a part."""
    outer, inner = sizes
    before, after = array.shape[:axis], array.shape[axis + 1 :]

    def read(index: Index) -> np.ndarray:
        rows, within = index[axis], index[axis + 1]
        whole = slice(rows.start * inner, rows.stop * inner)
        found = np.asarray(array[(*index[:axis], whole, *index[axis + 2 :])])
        shape = (*found.shape[:axis], rows.stop - rows.start, inner, *found.shape[axis + 1 :])
        return np.array(found.reshape(shape)[(slice(None),) * (axis + 1) + (within,)])

    return LazyArray((*before, outer, inner, *after), array.dtype, read)


def together(arrays: Sequence[Tensor]) -> LazyArray:
    """Arrays of one shape and dtype on a new first axis, each read when a part of it is."""

    def read(index: Index) -> np.ndarray:
        first, *rest = index
        shape = [first.stop - first.start, *(axis.stop - axis.start for axis in rest)]
        part = np.empty(shape, arrays[0].dtype)
        for i, array in enumerate(arrays[first]):
            part[i] = array[tuple(rest)]
        return part

    return LazyArray((len(arrays), *arrays[0].shape), arrays[0].dtype, read)


def finite(name: str, array: LazyArray) -> LazyArray:
    """The array; its numbers are looked at when they are read."""
    return LazyArray(array.shape, array.dtype, lambda index: require_finite(name, array[index]))


def require_finite(name: str, array: np.ndarray) -> np.ndarray:
    """The array.

    Raises:
        UserError: a number in it is NaN or infinite.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if array.dtype.itemsize == 1:
        array = array.astype(np.float16)  # eight bits have no least and greatest of their own
    # NaN is the least and the greatest of numbers that it is among; a mask would take memory.
    with np.errstate(invalid="ignore"):
        extremes = array.min(initial=0), array.max(initial=0)
    if not all(map(np.isfinite, extremes)):
        raise UserError(
            f"The weights' {name} has numbers that are NaN or infinite; get a sound copy of the file."
        )
    return array


def in_file(
    path: Path,
    offset: int,
    shape: Sequence[int],
    dtype: np.dtype,
    opened: Callable[[], IO[bytes]] | None = None,
) -> LazyArray:
    """An array in C order that begins at byte `offset` of a file, or of what `opened` opens in it."""

    def read(index: Index) -> np.ndarray:
        part = np.empty([axis.stop - axis.start for axis in index], dtype)
        if part.size:
            with said_of(path), opened() if opened else path.open("rb", buffering=0) as file:
                _fill(part, file, offset, tuple(shape), index)
        return part

    return LazyArray(shape, dtype, read)


def _fill(part: np.ndarray, file: IO[bytes], offset: int, shape: tuple[int, ...], index: Index) -> None:
    """Reads `index` of an array of `shape`: rows that are wanted whole at once, others in blocks."""
    if all(axis == slice(0, n) for axis, n in zip(index[1:], shape[1:], strict=True)):
        start = index[0].start if index else 0
        _read_exactly(file, offset + start * part.itemsize * math.prod(shape[1:]), part)
        return
    row = part.itemsize * math.prod(shape[1:])
    first, stop = index[0].start, index[0].stop
    if row > _BLOCK:
        for i in range(first, stop):
            _fill(part[i - first], file, offset + i * row, shape[1:], index[1:])
        return
    most = _BLOCK // row
    for i in range(first, stop, most):
        block = np.empty((min(most, stop - i), *shape[1:]), part.dtype)
        _read_exactly(file, offset + i * row, block)
        part[i - first : i - first + len(block)] = block[(slice(None), *index[1:])]


def _read_exactly(file: IO[bytes], offset: int, array: np.ndarray) -> None:
    """Fills a contiguous array."""
    data = array.reshape(-1).view(np.uint8).data
    file.seek(offset)
    while data:
        piece = file.read(min(len(data), _BLOCK))
        if not piece:
            raise EOFError("it ends inside an array")
        data[: len(piece)] = piece
        data = data[len(piece) :]


@contextlib.contextmanager
def said_of(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into a sentence.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever bytes of others make of a reader
        told = isinstance(error, Refused | OSError | ValueError | EOFError | zipfile.BadZipFile | zlib.error)
        if isinstance(error, MemoryError):
            reason = "it needs more memory than there is"
        else:
            reason = str(error) if told and str(error) else f"it is damaged ({type(error).__name__})"
        raise UserError(f"{path} cannot be read as weights: {reason.splitlines()[0][:_TOLD]}.") from None
