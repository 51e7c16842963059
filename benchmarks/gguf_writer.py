"""Writes GGUF files, for tests of what reads them: facts, and arrays of bytes as they lie in the file."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TEXT, LIST, UINT32, FLOAT32 = 8, 9, 4, 6
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8


class Array(NamedTuple):
    """An array as it lies in a file.

    Attributes:
        shape: the axis that lies closest last.
        kind: of numbers, such as `Q4_1`.
        data: all of its bytes.
    """

    shape: tuple[int, ...]
    kind: int
    data: bytes


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def fact(value: Any) -> bytes:
    """A text, a number, or a list of texts or numbers, behind its kind."""
    if isinstance(value, list):
        kind = TEXT if isinstance(value[0], str) else UINT32
        return struct.pack("<IIQ", LIST, kind, len(value)) + b"".join(fact(one)[4:] for one in value)
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + text(value)
    return (
        struct.pack("<If", FLOAT32, value) if isinstance(value, float) else struct.pack("<II", UINT32, value)
    )


def described(facts: Mapping[str, Any], arrays: Sequence[tuple[str, Sequence[int], int, int]]) -> bytes:
    """What comes before the arrays, of which each has a name, sizes as in the file, a kind and an offset."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(facts))
    out += b"".join(text(name) + fact(value) for name, value in facts.items())
    for name, sizes, kind, offset in arrays:
        out += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return out + bytes(-len(out) % 32)


def write(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Writes them in this order, each array at a multiple of 32 bytes."""
    data, entries = b"", []
    for name, array in arrays.items():
        entries.append((name, array.shape[::-1], array.kind, len(data)))
        data += array.data + bytes(-len(array.data) % 32)
    path.write_bytes(described(facts, entries) + data)
