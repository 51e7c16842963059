"""Tokens as Megatron keeps them: NAME.bin holds all of them, NAME.idx where each sequence and each document begins.

An index is the magic bytes "MMIDIDX\\0\\0", a version (uint64, 1), a code of the tokens' type (uint8), the numbers of sequences
and of documents and one (uint64 each), then of each sequence its number of tokens (int32) and where it begins in bytes
(int64), and of each document its first sequence (int64), all little-endian. Source: NVIDIA/Megatron-LM,
megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlperf_jax.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<QBQQ")
_DTYPES = {code: np.dtype(kind) for code, kind in ((4, "<i4"), (5, "<i8"), (8, "<u2"))}


class Tokens(NamedTuple):
    """A stream of documents.

    Attributes:
        tokens: [T], mapped into memory.
        num_documents: that follow each other in it.
    """

    tokens: np.ndarray
    num_documents: int


def read(path: Path) -> Tokens:
    """Opens PATH, which ends in .bin, by its index beside it.

    Raises:
        UserError: one of them is not there or damaged, or the sequences do not follow each other.
    """
    index = path.with_suffix(".idx")
    try:
        with index.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError("it does not begin as Megatron's indexes do")
            version, code, num_sequences, num_documents = _HEADER.unpack(file.read(_HEADER.size))
            if version != 1 or code not in _DTYPES:
                raise ValueError(f"its version is {version} and its type of tokens {code}")
            start, room = file.tell(), index.stat().st_size
            if start + 12 * num_sequences + 8 * num_documents != room or num_documents < 1:
                raise ValueError(f"its {room} bytes are not {num_sequences} sequences")
        lengths = np.memmap(index, "<i4", "r", start, (num_sequences,)) if num_sequences else np.zeros(0, int)
        tokens = np.memmap(path, _DTYPES[code], "r") if path.stat().st_size else np.zeros(0, _DTYPES[code])
        begins = (
            np.memmap(index, "<i8", "r", start + 4 * num_sequences, (num_sequences,))
            if num_sequences
            else lengths
        )
        ends = np.cumsum(lengths, dtype=np.int64)
        wanted = (ends - lengths) * tokens.itemsize
        if len(tokens) != (ends[-1] if num_sequences else 0) or not np.array_equal(begins, wanted):
            raise ValueError(
                f"its sequences are not the {len(tokens)} tokens of {path.name} one after the other"
            )
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{index} cannot be read ({error}); get {path.name} and it again.") from None
    return Tokens(tokens, num_documents - 1)


def write(path: Path, documents: Iterable[Sequence[int] | np.ndarray]) -> int:
    """Writes documents of int32 tokens, one sequence each, to PATH, which ends in .bin, and its index; the number of tokens."""
    lengths: list[int] = []
    with path.open("wb") as file:
        for document in documents:
            np.asarray(document, "<i4").tofile(file)
            lengths.append(len(document))
    ends = np.cumsum(lengths, dtype=np.int64)
    with path.with_suffix(".idx").open("wb") as file:
        file.write(_MAGIC + _HEADER.pack(1, 4, len(lengths), len(lengths) + 1))
        np.array(lengths, "<i4").tofile(file)
        ((ends - lengths) * 4).astype("<i8").tofile(file)
        np.arange(len(lengths) + 1, dtype="<i8").tofile(file)
    return int(ends[-1]) if lengths else 0
