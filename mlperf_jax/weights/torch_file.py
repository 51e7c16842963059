"""Reads a PyTorch state dict without PyTorch, and without running anything that is in the file.

`torch.save` writes a pickle: a program for a stack machine that may call any function by name. Here
the program is decoded by `pickletools`, which runs nothing, and interpreted with a stack that knows
dicts, lists, tuples, strings, numbers and tensors; any other name ends the reading.

Two containers are known: a zip of `data.pkl` and one file per storage (since PyTorch 1.6), and the
older one, in which pickles and storages follow each other.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from mlperf_jax.weights.lazy import Index, LazyArray, in_file

_MOST_PICKLE_BYTES = 64 * 2**20
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
}


class Refused(ValueError):
    """The file is damaged, or asks for something that a state dict does not need."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage: where it starts, its shape and strides, all in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, held: _Bytes) -> LazyArray:
        """What it shows of the storage's bytes.

        Raises:
            Refused: it reaches beyond them, or is larger than they are.
        """
        dtype = self.storage.dtype.newbyteorder("<")
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

    A dict that holds one under "state_dict" or "model" is looked into.

    Raises:
        Refused: see there.
    """
    if zipfile.is_zipfile(path):
        tree, storage = _read_zip(path)
    else:
        tree, storage = _read_legacy(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(tree, dict) and isinstance(tree.get(wrapper), dict):
            tree = tree[wrapper]
    if not isinstance(tree, dict) or not any(isinstance(v, _Tensor) for v in tree.values()):
        raise Refused("it holds no state dict")
    return {str(name): t.array(storage(t.storage)) for name, t in tree.items() if isinstance(t, _Tensor)}


def _read_zip(path: Path) -> tuple[Any, Callable[[_Storage], _Bytes]]:
    archive = zipfile.ZipFile(path)
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused("it is a zip without one data.pkl")
    root = pickles[0].removesuffix("data.pkl")

    def entry(name: str, most: int) -> zipfile.ZipInfo:
        found = entries.get(root + name)
        # PyTorch stores and never compresses, so that a small file cannot unfold into a huge one.
        if found is None or found.compress_type != zipfile.ZIP_STORED or found.file_size > most:
            raise Refused(f"its entry {name} is missing, compressed or larger than it may be")
        return found

    def held(storage: _Storage) -> _Bytes:
        found = entry(f"data/{storage.key}", storage.size * storage.dtype.itemsize)
        return _Bytes(path, 0, found.file_size, functools.partial(archive.open, found))

    if root + "byteorder" in entries and archive.read(entry("byteorder", 16)) != b"little":
        raise Refused("its numbers are big-endian")
    tree = _interpret(io.BytesIO(archive.read(entry("data.pkl", _MOST_PICKLE_BYTES))))
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
            if key not in storages:
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


@dataclasses.dataclass(frozen=True)
class _Name:
    """A name that the pickle asks for; it stands for nothing but itself."""

    name: str


_MARK = object()
_CALLS = ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter")
_NUMBERS_AND_TEXT = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def _interpret(file: IO[bytes], storages: dict[str, _Storage] | None = None) -> Any:
    """Runs one pickle on a stack of plain values; `storages` collects those that tensors name."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    storages = {} if storages is None else storages
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return stack.pop()
            _step(opcode.name, argument, stack, memo, storages)
    except Refused:
        raise
    except Exception as error:  # whatever a damaged file makes of the stack
        raise Refused(f"its pickle is damaged ({error})") from None
    raise Refused("its pickle has no end")


def _step(
    name: str, argument: Any, stack: list[Any], memo: dict[int, Any], storages: dict[str, _Storage]
) -> None:
    if name in ("PROTO", "FRAME"):
        return
    if name in _NUMBERS_AND_TEXT:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
        stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
    elif name == "MARK":
        stack.append(_MARK)
    elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET", "GET"):
        stack.append(memo[argument])
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name in ("APPEND", "APPENDS"):
        values = [stack.pop()] if name == "APPEND" else _since_mark(stack)
        _of(list, stack[-1]).extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        values = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else _since_mark(stack)
        _of(dict, stack[-1]).update(zip(values[::2], values[1::2], strict=True))
    elif name == "GLOBAL":
        stack.append(_allowed(argument.replace(" ", ".")))
    elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(_allowed(f"{module}.{attribute}"))
    elif name == "BINPERSID":
        storage = _storage(_of(tuple, stack.pop()))
        storages[storage.key] = storage
        stack.append(storage)
    elif name == "REDUCE":
        arguments = _of(tuple, stack.pop())
        stack.append(_call(_of(_Name, stack.pop()).name, arguments))
    elif name == "BUILD":
        # Attributes of an OrderedDict: `_metadata`, versions of modules, which nothing here needs.
        stack.pop()
        _of(dict, stack[-1])
    else:
        raise Refused(f"its pickle uses {name}, which a state dict does not need")


def _since_mark(stack: list[Any]) -> list[Any]:
    position = len(stack) - 1 - stack[::-1].index(_MARK)
    values = stack[position + 1 :]
    del stack[position:]
    return values


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise Refused(f"its pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _allowed(name: str) -> _Name:
    if name not in _CALLS and name not in _DTYPES:
        raise Refused(f"it asks for {name}, which a state dict does not need")
    return _Name(name)


def _storage(arguments: tuple[Any, ...]) -> _Storage:
    """("storage", type, key, place, elements) and in old files the description of a view, which is None."""
    word, kind, key, _, size = arguments[:5]
    if (
        word != "storage"
        or not isinstance(key, str)
        or type(size) is not int
        or size < 0
        or any(arguments[5:])
    ):
        raise Refused("it names a storage in a way that PyTorch does not")
    return _Storage(key, _DTYPES[_of(_Name, kind).name], size)


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    if name == "collections.OrderedDict":
        return dict(*arguments) if not arguments else _refuse_arguments(name)
    if name == "torch._utils._rebuild_parameter":
        return _of(_Tensor, arguments[0])
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, strides = arguments[:4]
        numbers = (offset, *_of(tuple, shape), *_of(tuple, strides))
        if not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(strides):
            raise Refused("it has a tensor with an impossible shape")
        return _Tensor(_of(_Storage, storage), offset, shape, strides)
    raise Refused(f"it calls {name}, which is no function")


def _refuse_arguments(name: str) -> Any:
    raise Refused(f"it calls {name} with arguments")
