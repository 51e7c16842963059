"""Reads GGUF, as llama.cpp has models: facts by name, then arrays, some of them quantised in blocks of 32 numbers.

Source: ggml-org/ggml, docs/gguf.md (what lies where) and src/ggml-common.h (block_q4_1, block_q8_0). Versions 2 and 3, whose
numbers are little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlperf_jax.errors import Refused
from mlperf_jax.weights import budget
from mlperf_jax.weights.lazy import Index, LazyArray, in_file

MAGIC = b"GGUF"
"""The first bytes of a file."""

Facts = dict[str, Any]
"""What a file says of its model: numbers, texts, and lists of them."""

_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of arrays, where a file names no other
_BLOCK = 32  # numbers that are quantised together
_TEXT, _LIST = 8, 9
# Type of a fact -> how it is packed.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

_PLAIN: dict[int, np.dtype] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
_Q4_1 = np.dtype([("scale", "<f2"), ("least", "<f2"), ("halves", "u1", (_BLOCK // 2,))])
_Q8_0 = np.dtype([("scale", "<f2"), ("numbers", "i1", (_BLOCK,))])


class _Array(NamedTuple):
    """Where an array lies: `offset` bytes behind the beginning of all."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def read(path: Path) -> dict[str, LazyArray]:
    """The arrays by name, the quantised ones in float32.

    Raises:
        Refused: it is no such file, damaged, or of a kind of numbers that is not read.
    """
    _, arrays, start = _described(path)
    size = path.stat().st_size
    return {array.name: _opened(path, array, start, size) for array in arrays}


def read_facts(path: Path) -> Facts:
    """What the file says of its model, its tokens among it.

    Raises:
        Refused: as `read`.
    """
    return _described(path)[0]


class _Bytes:
    """A file's bytes, read from the first on; none beyond its end or `budget.DESCRIPTION`."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._end = data, min(len(data), budget.DESCRIPTION)
        self._steps = 0
        self.at = 0

    def take(self, count: int) -> bytes:
        self._steps += 1
        if self._steps > budget.STEPS:
            raise Refused(f"it says more than {budget.STEPS:,} things")
        if not 0 <= count <= self._end - self.at:
            raise Refused("it ends inside its description")
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def fact(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        raise Refused(f"it has a fact of kind {kind}, which is not read")

    def facts(self) -> Any:
        """A fact behind its kind, or a list of some."""
        kind = self.number("I")
        if kind != _LIST:
            return self.fact(kind)
        kind, count = self.number("I"), self.number("Q")
        return [self.fact(kind) for _ in budget.counted(range(count))]


def _described(path: Path) -> tuple[Facts, list[_Array], int]:
    """The facts, the arrays, and where these begin."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        source = _Bytes(data)
        if source.take(len(MAGIC)) != MAGIC:
            raise Refused("it is no GGUF file")
        version = source.number("I")
        if version not in _VERSIONS:
            raise Refused(f"it is of version {version}, which is not read")
        num_arrays, num_facts = source.number("Q"), source.number("Q")
        facts = {source.text(): source.facts() for _ in budget.counted(range(num_facts))}
        arrays = list(_arrays(source, num_arrays))
    if len({array.name for array in arrays}) < len(arrays):
        raise Refused("two of its arrays have one name")
    alignment = facts.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 2**20:
        raise Refused("its arrays lie at multiples of what is no number")
    return facts, arrays, -(-source.at // alignment) * alignment


def _arrays(source: _Bytes, count: int) -> Iterator[_Array]:
    for _ in budget.counted(range(count), budget.ARRAYS, "arrays"):
        name, axes = source.text(), source.number("I")
        if axes > 4:
            raise Refused(f"its array {name!r} has {axes} axes")
        sizes = [source.number("Q") for _ in range(axes)][::-1]  # the one that lies closest comes first
        yield _Array(name, budget.shape(name, sizes, np.dtype("<f4")), source.number("I"), source.number("Q"))


def _opened(path: Path, array: _Array, start: int, size: int) -> LazyArray:
    name, shape, kind, offset = array
    if kind in _PLAIN:
        lies, lies_as = _PLAIN[kind], shape
    elif kind in _QUANTISED and shape and shape[-1] % _BLOCK == 0:
        lies, lies_as = _QUANTISED[kind][0], (*shape[:-1], shape[-1] // _BLOCK)
    else:
        raise Refused(
            f"its array {name!r} is of kind {kind} in rows of {shape[-1:]}; read are F32, F16, Q4_1 and Q8_0"
        )
    found = in_file(path, start + offset, lies_as, lies)
    if found.nbytes and start + offset + found.nbytes > size:
        raise Refused(f"it ends inside its array {name!r}")
    return found if kind in _PLAIN else _unpacked(found, shape, _QUANTISED[kind][1])


def _unpacked(
    blocks: LazyArray, shape: tuple[int, ...], numbers: Callable[[np.ndarray], np.ndarray]
) -> LazyArray:
    """An array of `shape` out of its blocks [..., N], of which no others are read than those of a part."""

    def part(index: Index) -> np.ndarray:
        *rows, last = index
        first = last.start // _BLOCK
        found = numbers(blocks[(*rows, slice(first, -(-last.stop // _BLOCK)))])
        found = found.reshape(*found.shape[:-2], found.shape[-2] * _BLOCK)
        return np.ascontiguousarray(found[..., last.start - first * _BLOCK : last.stop - first * _BLOCK])

    return LazyArray(shape, np.float32, part)


def _of_q4_1(blocks: np.ndarray) -> np.ndarray:
    """[..., 32] of blocks [...]: halves of bytes, the low ones first, times a scale and above a least number."""
    scale, least = (blocks[name].astype(np.float32)[..., None] for name in ("scale", "least"))
    halves = blocks["halves"]
    return np.concatenate([halves & 15, halves >> 4], -1).astype(np.float32) * scale + least


def _of_q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks["numbers"].astype(np.float32) * blocks["scale"].astype(np.float32)[..., None]


# Kind -> how a block lies, and its numbers.
_QUANTISED: dict[int, tuple[np.dtype, Callable[[np.ndarray], np.ndarray]]] = {
    3: (_Q4_1, _of_q4_1),
    8: (_Q8_0, _of_q8_0),
}
