"""Damages small valid files of every kind that is read, and watches what their readers make of it.

    python -m benchmarks.fuzzing 20000

A reader may read what is left, or refuse in a sentence of one line. Whatever else it raises, and more time or memory
than a small file may cost, is a failure, and its file is shown. The same seed makes the same files.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import random
import re
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mlperf_jax.errors import Refused, UserError

_SECONDS = 5.0  # of a file of some kilobytes
_MEMORY = 512 * 2**10  # KiB by which the process may grow
_LONGEST_SENTENCE = 2000
_SHOWN = 10  # failures


@dataclasses.dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Attributes:
        name: for people.
        write: makes a small valid file in an empty folder; the file that is to be damaged.
        read: reads it.
        refusals: what it raises where it says no.
    """

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...] = (UserError, Refused)


@dataclasses.dataclass(frozen=True)
class Failure:
    """What a reader should not have done, and the file that it did it with."""

    reader: str
    why: str
    data: bytes


def fuzz(
    readers: Sequence[Reader], count: int, *, seed: int = 0, seconds: float = float("inf")
) -> tuple[int, list[Failure]]:
    """Damages each reader's file in turn, in the main thread.

    Args:
        readers: see there.
        count: files in all.
        seed: of all that is drawn.
        seconds: after which it ends early.

    Returns:
        How many files were tried, and what went wrong.
    """
    failures: list[Failure] = []
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        places = []
        for i, reader in enumerate(readers):
            folder = Path(scratch) / str(i)
            folder.mkdir()
            path = reader.write(folder)
            reader.read(path)  # what is whole is read
            places.append((reader, path, path.read_bytes()))
        tried = 0
        while tried < count and time.monotonic() < end:
            reader, path, whole = places[tried % len(places)]
            data = damaged(whole, random.Random(f"{seed} {tried}"))
            path.write_bytes(data)
            why = _judged(reader, path)
            if why:
                failures.append(Failure(reader.name, why, data))
            tried += 1
    return tried, failures


class _TooLong(BaseException):
    """Not an Exception, so that no reader takes it for damage."""


def _judged(reader: Reader, path: Path) -> str:
    """What a reader did wrong, "" where nothing."""

    def stop(*_: object) -> None:
        raise _TooLong

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        reader.read(path)
    except reader.refusals as error:
        said = str(error)
        if not said or "\n" in said or len(said) > _LONGEST_SENTENCE:
            return f"no sentence: {said[:200]!r} of {len(said)} characters"
    except _TooLong:
        return f"longer than {_SECONDS:g} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{grown >> 10} MiB" if grown > _MEMORY else ""


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes with up to four damages; inside a zip's entry, which is then packed again, in half of them."""
    if zipfile.is_zipfile(io.BytesIO(data)) and draw.random() < 0.6:
        return _inside_zip(data, draw)
    for _ in range(draw.randint(1, 4)):
        data = draw.choice(_DAMAGES)(data, draw) if data else b""
    return data


def _inside_zip(data: bytes, draw: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
        kinds = {entry.filename: entry.compress_type for entry in archive.infolist()}
    name = draw.choice(list(entries))
    entries[name] = damaged(entries[name], draw)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content, kinds[entry])
    return out.getvalue()


def _flip(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def _byte(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))]) + data[place + 1 :]


def _truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def _field(data: bytes, draw: random.Random) -> bytes:
    """Another number in a field of one to eight bytes."""
    width, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
    top = 1 << 8 * width
    value = draw.choice((0, 1, 2, top // 2 - 1, top // 2, top - 1, draw.randrange(top))) % top
    place = draw.randrange(len(data))
    return data[:place] + value.to_bytes(width, order) + data[place + width :]  # type: ignore[arg-type]


def _varint(data: bytes, draw: random.Random) -> bytes:
    """A length or a number of a protocol buffer that is huge, or has no end."""
    place = draw.randrange(len(data))
    long = b"\xff" * draw.choice((1, 4, 8, 9, 12)) + b"\x01"
    return data[:place] + long + data[place + 1 :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data))
    piece = data[start : start + draw.choice((1, 2, 8, 64))]
    return data[:start] + piece * draw.choice((2, 3, 100, 2000)) + data[start:]


def _cut_out(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.choice((1, 2, 8, 64)) :]


def _moved(data: bytes, draw: random.Random) -> bytes:
    start, place = draw.randrange(len(data)), draw.randrange(len(data))
    return data[:place] + data[start : start + draw.choice((1, 4, 16, 64))] + data[place:]


_NUMBERS = (
    b"-1", b"0", b"1e400", b"-5", b"NaN", b"1" * 400, b"9" * 5000, b"18446744073709551616", b"null", b"[]", b"{}",
    b'"x"', b"true", b"[[" * 3000, b"0x7fffffffffffffff", b"1.5", b"",
)  # fmt: skip


def _number(data: bytes, draw: random.Random) -> bytes:
    """Something else where a number is written in digits, or a text in quotes."""
    found = list(re.finditer(rb'-?\d+(?:\.\d+)?|"[^"]*"', data))
    if not found:
        return _byte(data, draw)
    match = draw.choice(found)
    return data[: match.start()] + draw.choice(_NUMBERS) + data[match.end() :]


_ATOMS = (
    b"\x86q\x00h\x00" * 40, b"(" * 3000, b"[" * 3000, b"{" * 3000, b")]};" * 50, b"\x1b[2J", b"\\", b"\0" * 16,
    b"\xff\xfe", b"\n" * 40, b"'" * 99, b"h\x00" * 99, b"\x85" * 999, b"t", b"R", b"b", b"\xf0\x9f\x92\xa9",
)  # fmt: skip


def _inserted(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + draw.choice(_ATOMS) + data[place:]


_DAMAGES = (
    _flip, _byte, _byte, _truncate, _field, _field, _varint, _repeat, _cut_out, _moved, _number, _number, _inserted,
)  # fmt: skip


def _shown(failures: Sequence[Failure]) -> Iterator[str]:
    for failure in failures[:_SHOWN]:
        yield f"  {failure.reader}: {failure.why}"
        yield f"    {base64.b64encode(failure.data[:3000]).decode()}"


def main() -> int:
    """Prints how many files were tried and survived."""
    from benchmarks.fuzzed_readers import readers

    count, seed = (int(word) for word in (*sys.argv[1:], *("2000", "0")[len(sys.argv) - 1 :]))
    known = readers()
    tried, failures = fuzz(known, count, seed=seed)
    print(
        f"{len(known)} readers, {tried} damaged files, {tried - len(failures)} survived",
        *_shown(failures),
        sep="\n",
    )
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
