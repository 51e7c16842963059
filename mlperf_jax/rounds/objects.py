"""JSON that anybody wrote, read without failing: objects, numbers, texts."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_jax.nested import flatten
from mlperf_jax.regular import open_regular

_MOST_BYTES = 64 << 20
_MOST_ITEMS = 200  # told of one list or dict
_LARGEST = 1e15  # of figures: beyond it nothing means anything
# Words by which submitters say that they have nothing to say.
_EMPTY = {"", "-", "n/a", "na", "none", "null", "not stated", "no", "tbd", "0", "n/a.", "not applicable"}


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none, for a report is no place to fail on that."""
    try:
        with open_regular(path) as file:
            found = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_ends(path: Path, most: int) -> bytes:
    """A file's text; of one that is longer than `most` bytes, the whole lines of its first and its last half.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        text = file.read(most + 1)
        if len(text) <= most:
            return text
        text = text[: most // 2]
        file.seek(-(most // 2), os.SEEK_END)
        end = file.read(most // 2)
    return text[: text.rfind(b"\n") + 1] + end[end.find(b"\n") + 1 :]


def command_in(record: Mapping[str, Any]) -> str:
    """What was typed to make a run of ours, as its records hold it; "" where they do not."""
    words = record.get("command")
    return shlex.join(map(str, words)) if isinstance(words, list) else ""


def flat_texts(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Everything said in an object, as (dotted name, text): {"nodes": [{"cpu": "Xeon"}]} is ("nodes.0.cpu", "Xeon")."""
    texts = ((name, text(value)) for name, value in flatten(_by_name(record)).items())
    return tuple((name, said) for name, said in texts if said)


def _by_name(value: Any) -> Any:
    """Lists as dicts by index, and no more of either than anybody reads."""
    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {str(name): _by_name(item) for name, item in itertools.islice(pairs, _MOST_ITEMS)}
    return value


def text(said: Any) -> str:
    """A string or number as one line of bounded length; "" where it says nothing."""
    line = " ".join(str(said).split()) if isinstance(said, (str, int, float)) else ""
    return "" if line.lower() in _EMPTY else line[:300]


def number(value: Any) -> float | None:
    """`value` as a number that can mean something, None if it is none; of {"BBOX": ...} the first in it."""
    if isinstance(value, dict):
        return next((n for n in map(number, value.values()) if n is not None), None)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    with contextlib.suppress(ValueError, OverflowError):
        found = float(value)
        return found if abs(found) <= _LARGEST else None
    return None
