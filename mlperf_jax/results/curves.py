"""What TensorBoard's files of a run of ours hold of its evaluations: the same that its log does."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

from mlperf_jax.regular import open_regular
from mlperf_jax.weights.protobuf import as_bytes, as_number, fields

_MOST_BYTES = 256 << 20  # of all files: a run of days has less
_PREFIX = "eval/"
# Field numbers of tensorflow/core/util/event.proto and tensorflow/core/framework/summary.proto.
_WALL_TIME, _STEP, _SUMMARY, _SESSION = 1, 2, 5, 7
_VALUE, _TAG, _SIMPLE = 1, 1, 2
# What a file that was cut off or damaged can raise where it is taken apart.
_DAMAGE = (IndexError, TypeError, ValueError, struct.error)


@dataclasses.dataclass(frozen=True)
class Point:
    """One evaluation. time_ms: milliseconds since 1970. figures: by name, in single precision."""

    step: int
    time_ms: float
    figures: dict[str, float]


def read_evaluations(folder: Path) -> list[Point]:
    """The evaluations of a run in order, without those that a resumed run took back; none where nothing can be read.

    Args:
        folder: the run's tensorboard/.
    """
    points: dict[int, Point] = {}
    left = _MOST_BYTES
    for path in sorted(folder.glob("events.out.tfevents.*"), key=_began):
        try:
            with open_regular(path) as file:
                data = file.read(left)
        except OSError:
            continue
        left -= len(data)
        for event in _events(data):
            _take(event, points)
    return [points[step] for step in sorted(points)]


def _began(path: Path) -> tuple[int, str]:
    """When a file was begun: events.out.tfevents.<seconds>.<host> and what keeps two of one second apart."""
    seconds = path.name.split(".")[3]
    return int(seconds) if seconds.isdigit() else 0, path.name


def _events(data: bytes) -> Iterator[dict[int, int | memoryview]]:
    """The messages in a file of records: length, its sum, message, its sum."""
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        try:
            yield dict(fields(memoryview(data)[at + 12 : at + 12 + length]))
        except _DAMAGE:
            return
        at += 12 + length + 4


def _take(event: dict[int, int | memoryview], points: dict[int, Point]) -> None:
    """Adds an event's figures to those of its step."""
    try:
        step = as_number(event.get(_STEP, 0))
        if _SESSION in event:  # what an earlier process did from here on happens again
            for again in [known for known in points if known >= step]:
                del points[again]
        if _SUMMARY not in event:
            return
        (seconds,) = struct.unpack("<d", as_bytes(event[_WALL_TIME]))
        for number, message in fields(as_bytes(event[_SUMMARY])):
            value = dict(fields(as_bytes(message))) if number == _VALUE else {}
            name = bytes(as_bytes(value.get(_TAG, memoryview(b"")))).decode()
            if name.startswith(_PREFIX) and _SIMPLE in value:
                (figure,) = struct.unpack("<f", as_bytes(value[_SIMPLE]))
                known = points[step].figures if step in points else {}
                found = known | {name.removeprefix(_PREFIX): figure}
                points[step] = Point(step, 1e3 * seconds, found)
    except (*_DAMAGE, KeyError):
        return
