"""The lines of training result logs of every MLPerf round, found fast and decoded without trust.

Three formats, in lines that may carry a prefix and stand among any other output:

    :::MLPv0.5.0 resnet 1541660914.084 (resnet_main.py:523) run_stop: {"success": "true"}       v0.5
    :::MLL 1558636062.045 run_stop: {"value": null, "metadata": {"status": "success"}}           v0.6
    :::MLLOG {"key": "run_stop", "time_ms": 1594412166346, "metadata": {"status": "success"}}    from v0.7 on
"""

from __future__ import annotations

import ast
import dataclasses
import gzip
import json
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.regular import open_regular

_CHUNK = 8 << 20
_LONGEST_LINE = 1 << 20
_MOST_BYTES = 4 << 30  # of one log, unpacked: a bound for what a packed file may become
_MOST_PYTHON = 10_000  # characters of a line that is no JSON
_LARGEST = 1e15  # of times, in milliseconds: beyond it nothing means anything
# All that a line which is no event can raise where it is taken for one.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    KeyError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
_KEY = re.compile(rb'"key"\s*:\s*"([\w.]+)"')
_V05 = re.compile(rb":::MLPv0\.5\.0\s+(\S+)\s+([0-9.]+)\s+\([^)]*\)\s+(\w+)(?::\s*(.*))?")
_V06 = re.compile(rb":::MLL\s+([0-9.]+)\s+(\w+)\s*:\s*(.*)")
_BARE = {"null": None, "true": True, "false": False, "NaN": math.nan, "Infinity": math.inf}


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One line of a log.

    Attributes:
        time_ms: milliseconds of the log's own clock, since 1970 if it is right.
        line: its number in the file, from 1.
    """

    key: str
    value: Any
    metadata: dict[str, Any]
    time_ms: float
    line: int = 0


def read_events(path: Path) -> tuple[list[Event], list[int]]:
    """Every event of a log, of whatever key, for who judges it line by line.

    Returns:
        The events in order, and the numbers of the lines that claim to be events and are none.

    Raises:
        UserError: the log cannot be read.
    """
    events: list[Event] = []
    damaged: list[int] = []
    for line_number, line in event_lines(path):
        try:
            events.append(any_event(line, line_number))
        except DAMAGE:
            damaged.append(line_number)
    return events, damaged


def event_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The number of each line with ":::ML", and what follows that to the end of the line.

    Raises:
        UserError: the log cannot be read.
    """
    rest, first = b"", 1
    for chunk in _chunks(path):
        chunk = rest + chunk
        cut = chunk.rfind(b"\n") + 1
        rest = chunk[cut:][-_LONGEST_LINE:]  # a line without end cannot fill the memory
        yield from _lines_in(chunk[:cut], first)
        first += chunk.count(b"\n", 0, cut)
    yield from _lines_in(rest, first)


def _chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, unpacked."""
    try:
        with open_regular(path) as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            total = 0
            while chunk := file.read(_CHUNK):
                total += len(chunk)
                if total > _MOST_BYTES:
                    raise OSError(f"more than {_MOST_BYTES >> 30} GiB")
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}).") from None


def _lines_in(text: bytes, first: int) -> Iterator[tuple[int, bytes]]:
    """As `event_lines`, of a text that begins with line `first`."""
    at, counted = text.find(b":::ML"), 0
    while at >= 0:
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        first, counted = first + text.count(b"\n", counted, at), at
        if end - at <= _LONGEST_LINE:
            yield first, text[at:end]
        at = text.find(b":::ML", end)


def any_event(line: bytes, line_number: int) -> Event:
    """The event that a line is.

    Raises:
        one of `DAMAGE`: it is none.
    """
    found, key, match = recognized(line)
    if found == "MLLOG":
        raw = decode(line[8:])
        time_ms = raw["time_ms"] if "time_ms" in raw else float(raw["time_s"]) * 1000
        if raw["key"] != key.decode():
            raise ValueError("another key")
        return _event(raw["key"], raw.get("value"), raw.get("metadata"), time_ms, line_number)
    if found == "MLL":
        raw = decode(match[3])
        time_ms = float(match[1]) * 1000
        return _event(key.decode(), raw.get("value"), raw.get("metadata"), time_ms, line_number)
    value = decode(match[4]) if match[4] and match[4].strip() else None
    return _event(key.decode(), value, {}, float(match[2]) * 1000, line_number)


def recognized(line: bytes) -> tuple[str, bytes, re.Match[bytes]]:
    """What can be told of a line without decoding it: its format, its key, and the match of the format's pattern.

    Raises:
        ValueError: it is no event.
    """
    for name, start, pattern, group in (
        ("MLLOG", b":::MLLOG", _KEY, 1),
        ("MLL", b":::MLL ", _V06, 2),
        ("MLPv0.5.0", b":::MLP", _V05, 3),
    ):
        if line.startswith(start):
            match = pattern.search(line) if name == "MLLOG" else pattern.match(line)
            if match:
                return name, match[group], match
            break
    raise ValueError("no event")


def _event(key: str, value: Any, metadata: Any, time_ms: Any, line: int) -> Event:
    time = float(time_ms)
    if not abs(time) <= _LARGEST:
        raise ValueError("no time")
    told = metadata if isinstance(metadata, dict) else {}
    return Event(key, value, {k: v for k, v in told.items() if k not in ("file", "lineno")}, time, line)


def decode(text: bytes) -> Any:
    """JSON, or the mixture of JSON and Python that some submissions logged."""
    decoded = text.decode("utf-8", "replace").strip()
    try:
        return json.loads(decoded)
    except ValueError:
        if len(decoded) > _MOST_PYTHON:
            raise
        with warnings.catch_warnings():  # of the compiler, on text that is neither
            warnings.simplefilter("ignore")
            return ast.literal_eval(re.sub(r"\b(null|true|false)\b", lambda m: str(_BARE[m[1]]), decoded))
