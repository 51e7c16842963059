"""The text of Criteo's click logs, parsed by NumPy in chunks of many lines.

A line is a label, 0 or 1, 13 whole numbers and 26 hexadecimal categories of at most eight digits, with
tabs between them; numbers and categories may be missing. Fields are gathered as words of eight bytes, on
which all digits are checked and joined at once.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from input_pipelines.clicks.criteo_format import FIRST_TABLE, INTS
from mlperf_jax.errors import UserError

_LAST_BYTES = np.array([2**64 - 2 ** (8 * (8 - n)) for n in range(9)], np.uint64)
"""Masks of the last n bytes of a word that is read as little-endian, which are its highest."""


def whole_lines(source: Path, chunk_bytes: int) -> Iterator[bytes]:
    """Yields a file's text, unpacked if it ends with .gz, in pieces of about so many bytes that end with a newline.

    Raises:
        UserError: the file is damaged.
    """
    rest = b""
    try:
        with gzip.open(source) if source.suffix == ".gz" else open(source, "rb") as file:
            while chunk := file.read(chunk_bytes):
                cut = chunk.rfind(b"\n") + 1
                if cut:
                    yield rest + chunk[:cut]
                    rest = chunk[cut:]
                else:
                    rest += chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{source} is not a whole gzip file ({error}); get it again.") from None
    if rest:
        yield rest + b"\n"


def parse(text: bytes, modulus: int) -> np.ndarray:
    """Parses whole lines of label, 13 numbers and 26 hexadecimal categories, with tabs between them.

    Args:
        text: ends with a newline.
        modulus: categories are taken modulo this.

    Returns:
        [lines, 40] int32, of which none is negative.

    Raises:
        ValueError: a line is not of that form.
    """
    data = np.frombuffer(bytes(8) + text, np.uint8)
    ends: np.ndarray = np.flatnonzero((data == ord("\t")) | (data == ord("\n")))
    if len(ends) % INTS:
        raise ValueError(f"a line without {INTS} fields")
    is_newline = (data[ends] == ord("\n")).reshape(-1, INTS)
    if not is_newline[:, -1].all() or is_newline[:, :-1].any():
        raise ValueError(f"a line without {INTS} fields")
    lengths = np.diff(ends, prepend=7) - 1
    # The eight bytes before a field's end: the field, and what stands before it, which is masked.
    words = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))[ends - 8]
    words = (words & _last_bytes(lengths)).reshape(-1, INTS)
    lengths = lengths.reshape(-1, INTS)
    ends = ends.reshape(-1, INTS)

    result = np.empty(words.shape, np.int32)
    result[:, :FIRST_TABLE] = _decimal(
        data, ends[:, :FIRST_TABLE], lengths[:, :FIRST_TABLE], words[:, :FIRST_TABLE]
    )
    if (lengths[:, 0] != 1).any() or (result[:, 0] > 1).any():
        raise ValueError("a label that is neither 0 nor 1")
    result[:, FIRST_TABLE:] = _hexadecimal(lengths[:, FIRST_TABLE:], words[:, FIRST_TABLE:]) % np.uint64(
        modulus
    )
    return result


def _repeated(byte: int) -> np.uint64:
    return np.uint64(byte * 0x0101010101010101)


def _is_digit(words: np.ndarray) -> np.ndarray:
    """0x80 in each byte that is one of "0" to "9"; bytes are below 128."""
    high = _repeated(0x80)
    return (words + _repeated(0x80 - ord("0"))) & ~(words + _repeated(0x80 - ord("9") - 1)) & high


def _last_bytes(lengths: np.ndarray) -> np.ndarray:
    return _LAST_BYTES.take(lengths, mode="clip")


def _occupied(lengths: np.ndarray) -> np.ndarray:
    """0x80 in each of the last `lengths` bytes of a word."""
    return _last_bytes(lengths) & _repeated(0x80)


def _hexadecimal(lengths: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The values of at most eight hexadecimal digits, which are the last bytes of their words."""
    if (words & _repeated(0x80)).any():
        raise ValueError("a category that is not hexadecimal")
    lower = words | _repeated(0x20)
    high = _repeated(0x80)
    letter = (lower + _repeated(0x80 - ord("a"))) & ~(lower + _repeated(0x80 - ord("f") - 1)) & high
    if (lengths > 8).any() or ((_is_digit(words) | letter) != _occupied(lengths)).any():
        raise ValueError("a category that is not hexadecimal")
    digits = (words & _repeated(0x0F)) + (letter >> np.uint64(7)) * np.uint64(9)
    return _combine(digits, 16)


def _decimal(data: np.ndarray, ends: np.ndarray, lengths: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The values of whole numbers, or 0 for those that are missing or negative."""
    digits = np.where(words & _repeated(0x80), 0, _is_digit(words))
    plain = (lengths <= 8) & (digits == _occupied(lengths))
    signed = (lengths >= 2) & (lengths <= 8) & (digits == _occupied(lengths - 1))
    negative = signed & (data[ends - lengths] == ord("-"))
    values = np.where(plain, _combine(words & _repeated(0x0F), 10), np.uint64(0)).astype(np.int64)
    for place in zip(*np.nonzero(~plain & ~negative), strict=True):  # Long numbers are rare.
        end, length = int(ends[place]), int(lengths[place])
        field = data[end - length : end].tobytes()
        if not field.removeprefix(b"-").isdigit() or length > 11 or not -(2**31) <= int(field) < 2**31:
            raise ValueError(f"{field[:20]!r} where a number belongs")
        values[place] = max(int(field), 0)
    return values


def _combine(digits: np.ndarray, base: int) -> np.ndarray:
    """Joins the eight digits in a word's bytes, the first of them in its lowest, to a number."""
    for width, mask in ((8, 0x00FF00FF00FF00FF), (16, 0x0000FFFF0000FFFF), (32, 0x00000000FFFFFFFF)):
        power = np.uint64(base ** (width // 8))
        digits = (digits * power + (digits >> np.uint64(width))) & np.uint64(mask)
    return digits
