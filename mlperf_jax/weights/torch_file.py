"""Reads a PyTorch state dict without PyTorch, and without running anything that is in the file.

`torch.save` writes a pickle, which `mlperf_jax.pickles` takes apart. What a training left beside the tensors (options,
an optimizer, whole objects) stays a note that is passed over.

Two containers are known: a zip of `data.pkl` and one file per storage (since PyTorch 1.6), and the
older one, in which pickles and storages follow each other.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from mlperf_jax import pickles
from mlperf_jax.errors import Refused
from mlperf_jax.pickles import Note
from mlperf_jax.weights import budget
from mlperf_jax.weights.lazy import Index, LazyArray, in_file

WRAPPERS = ("state_dict", "model_state_dict", "best_model_state_dict", "model", "net")
"""Under what a file may hold the state dict, besides other things."""

_TOLD = 8  # entries of a file without one
_MEND = f"save model.state_dict(), alone or under one of {', '.join(WRAPPERS)}"

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_DTYPES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
    "torch.QInt8Storage": np.dtype(np.int8),
    "torch.QUInt8Storage": np.dtype(np.uint8),
    "torch.QInt32Storage": np.dtype(np.int32),
    "torch.UntypedStorage": np.dtype(np.uint8),
    "torch.storage.UntypedStorage": np.dtype(np.uint8),
}
# Of those that have no storage of their own.
_NEW_DTYPES = {
    "torch.uint16": np.dtype(np.uint16),
    "torch.uint32": np.dtype(np.uint32),
    "torch.uint64": np.dtype(np.uint64),
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage: where it starts, its shape and strides, all in elements of `dtype`."""

    storage: _Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, held: _Bytes) -> LazyArray:
        """What it shows of the storage's bytes.

        Raises:
            Refused: it reaches beyond them, or is larger than they are.
        """
        dtype = self.dtype.newbyteorder("<")
        if math.prod(self.shape) == 0:
            return LazyArray.of(np.zeros(self.shape, dtype))
        reach = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        whole = held.size // dtype.itemsize
        if math.prod(self.shape) > whole or self.offset + reach > whole:
            raise Refused(f"a tensor {self.shape} reaches beyond its storage of {whole} elements")
        start = held.offset + self.offset * dtype.itemsize
        axes = sorted(range(len(self.shape)), key=lambda axis: -self.strides[axis])
        shape = [self.shape[axis] for axis in axes]
        if all(n == 1 or self.strides[axes[i]] == math.prod(shape[i + 1 :]) for i, n in enumerate(shape)):
            in_order = in_file(held.path, start, shape, dtype, held.opened)
            return in_order.transpose(*(axes.index(axis) for axis in range(len(axes))))
        # With gaps, or numbers that are shown twice.
        span = in_file(held.path, start, [reach], dtype, held.opened)
        steps = [s * dtype.itemsize for s in self.strides]

        def read(index: Index) -> np.ndarray:
            return np.array(np.lib.stride_tricks.as_strided(np.asarray(span), self.shape, steps)[index])

        return LazyArray(self.shape, dtype, read)


class _Bytes(NamedTuple):
    """Where a storage lies: `size` bytes from `offset` on, of a file or of what `opened` opens in it."""

    path: Path
    offset: int
    size: int
    opened: Callable[[], IO[bytes]] | None = None


def read(path: Path) -> dict[str, LazyArray]:
    """The tensors of a state dict by name, to be read one by one.

    A dict that holds one under a name of `WRAPPERS` is looked into.

    Raises:
        Refused: see there.
    """
    tree, storage = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    arrays: dict[str, LazyArray] = {}
    for name, note in budget.counted(_state_dict(tree).items(), budget.ARRAYS, "tensors"):
        tensor = _tensor(name, note)
        if tensor is not None:
            arrays[name] = tensor.array(storage(tensor.storage))
    return arrays


def _state_dict(tree: Any) -> Mapping[str, Note]:
    """Name -> what rebuilds a tensor, of the dict that wrappers hold, or of the outermost."""
    if isinstance(tree, Note) and not tree.items:
        raise Refused(f"it holds an object of {tree.name}, which a state dict does not need; {_MEND}")
    outer = _entries(tree)
    tensors = _wrapped(outer, len(WRAPPERS))
    if not tensors:
        listed = [f"{name[:40]!r} ({_kind(value)})" for name, value in list(outer.items())[:_TOLD]]
        more = ", ..." if len(outer) > _TOLD else ""
        raise Refused(
            f"it holds no state dict, but {', '.join(listed) or 'no entry with a name'}{more}; {_MEND}"
        )
    return tensors


def _wrapped(entries: Mapping[str, Any], depth: int) -> dict[str, Note]:
    """The tensors under the first wrapper that holds some, or else those beside the wrappers."""
    for wrapper in WRAPPERS if depth else ():
        if wrapper in entries and (found := _wrapped(_entries(entries[wrapper]), depth - 1)):
            return found
    return {name: value for name, value in entries.items() if _is_tensor(value)}


def _entries(value: Any) -> dict[str, Any]:
    if isinstance(value, Note):
        return value.items
    return value if isinstance(value, dict) else {}


def _kind(value: Any) -> str:
    """What an entry is, for people."""
    if isinstance(value, Note):
        return "a tensor" if _is_tensor(value) else f"an object of {value.name}"
    if isinstance(value, dict):
        count = sum(map(_is_tensor, value.values()))
        return f"a dict of {count} tensors" if count else "a dict without tensors"
    return type(value).__name__


def _read_zip(path: Path) -> tuple[Any, Callable[[_Storage], _Bytes]]:
    archive = zipfile.ZipFile(path)
    entries = {entry.filename: entry for entry in archive.infolist()}
    described = [name for name in entries if name.endswith("/data.pkl")]
    if len(described) != 1:
        raise Refused("it is a zip without one data.pkl")
    root = described[0].removesuffix("data.pkl")
    end = path.stat().st_size

    def entry(name: str, most: int) -> zipfile.ZipInfo:
        found = entries.get(root + name)
        # PyTorch stores and never compresses, so that a small file cannot unfold into a huge one.
        if found is None or found.compress_type != zipfile.ZIP_STORED or found.file_size > most:
            raise Refused(f"its entry {name} is missing, compressed or larger than it may be")
        if found.compress_size != found.file_size or found.header_offset + found.file_size > end:
            raise Refused(f"its entry {name} reaches beyond the file")
        return found

    def held(storage: _Storage) -> _Bytes:
        found = entry(f"data/{storage.key}", storage.size * storage.dtype.itemsize)
        return _Bytes(path, 0, found.file_size, functools.partial(archive.open, found))

    if root + "byteorder" in entries and archive.read(entry("byteorder", 16)) != b"little":
        raise Refused("its numbers are big-endian")
    tree = _interpret(io.BytesIO(archive.read(entry("data.pkl", budget.DESCRIPTION))))
    return tree, held


def _read_legacy(path: Path) -> tuple[Any, Callable[[_Storage], _Bytes]]:
    with path.open("rb") as file:
        if _interpret(file) != _LEGACY_MAGIC or _interpret(file) != _LEGACY_PROTOCOL:
            raise Refused("it is no file of torch.save")
        machine = _interpret(file)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise Refused("its numbers are big-endian")
        storages: dict[str, _Storage] = {}
        tree = _interpret(file, storages)
        keys = _interpret(file)
        held: dict[str, _Bytes] = {}
        for key in keys if isinstance(keys, list) else ():
            if type(key) is not str or key not in storages:
                raise Refused("it has a storage that no tensor uses")
            size, known = int.from_bytes(file.read(8), "little"), storages[key]
            length = size * known.dtype.itemsize
            if size != known.size or file.tell() + length > path.stat().st_size:
                raise Refused(f"its storage {key} has not the {known.size} elements that are announced")
            held[key] = _Bytes(path, file.tell(), length)
            file.seek(length, io.SEEK_CUR)
    if held.keys() != storages.keys():
        raise Refused("it ends before its last storage")
    return tree, lambda storage: held[storage.key]


def _interpret(file: IO[bytes], storages: dict[str, _Storage] | None = None) -> Any:
    """What one pickle describes; `storages` collects those that tensors name."""

    def stored(identity: Any) -> _Storage:
        storage = _storage(identity)
        if storages is not None:
            storages[storage.key] = storage
        return storage

    return pickles.interpret(file, stored, most=budget.DESCRIPTION, steps=budget.STEPS)


def _storage(identity: Any) -> _Storage:
    """("storage", type, key, place, elements) and in old files the description of a view, which is None."""
    if not isinstance(identity, tuple) or not 5 <= len(identity) <= 6:
        raise Refused("it names a storage in a way that PyTorch does not")
    word, kind, key, _, size = identity[:5]
    known = type(word) is type(key) is str and type(size) is int and isinstance(kind, Note)
    if not known or word != "storage" or not 0 <= size < 2**62 or any(x is not None for x in identity[5:]):
        raise Refused("it names a storage in a way that PyTorch does not")
    if kind.name not in _DTYPES:
        raise Refused(f"it has a storage of {kind.name}, which is not read")
    return _Storage(key, _DTYPES[kind.name], size)


_REBUILD = "torch._utils._rebuild_"
_WRAPS = {f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state", "torch._tensor._rebuild_from_type_v2"}
_VIEWS = {f"{_REBUILD}tensor", f"{_REBUILD}tensor_v2", f"{_REBUILD}tensor_v3"}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Note) and value.arguments is not None and value.name in _WRAPS | _VIEWS


def _tensor(name: str, note: Note) -> _Tensor | None:
    """The view of a storage; None of another kind of tensor (sparse, quantized), which no model here has.

    Raises:
        Refused: it is none.
    """
    for _ in _WRAPS:
        if note.name not in _WRAPS:
            break
        if note.name.endswith("_from_type_v2"):
            function, _, arguments = note.arguments[:3]
            note = Note(function.name, arguments)
        else:
            note = note.arguments[0]
        if not isinstance(note, Note) or not isinstance(note.arguments, tuple):
            raise Refused(f"its {name!r} is no tensor")
    if note.name not in _VIEWS:
        return None
    storage, offset, shape, strides = note.arguments[:4]
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise Refused(f"its {name!r} is no tensor")
    dtype = storage.dtype
    if note.name.endswith("_v3"):
        kind = note.arguments[6].name
        if kind not in _NEW_DTYPES:
            return None
        dtype = _NEW_DTYPES[kind]
    sizes = budget.shape(name, shape, dtype)
    if len(strides) != len(shape) or not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *strides)):
        raise Refused(f"its {name!r} has impossible strides")
    return _Tensor(storage, dtype, offset, sizes, strides)
