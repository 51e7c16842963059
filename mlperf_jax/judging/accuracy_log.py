"""The answers that a LoadGen run logged: whether every sample is there, once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mlperf_jax.errors import UserError
from mlperf_jax.goals import Quality
from mlperf_jax.regular import open_regular, read_regular

NAME = "mlperf_log_accuracy.json"
_MOST_BYTES = 4 << 30
_MORE = b"\n\n...\n\n"  # between the ends of a log that was cut


@dataclasses.dataclass(frozen=True)
class Answers:
    """What an accuracy log holds.

    Attributes:
        data: sample -> its answer in hex, of a sample answered twice the first.
        sequence: how often each `seq_id` stands there.
        twice: samples that were answered more than once.
        differing: samples whose answers differ.
        count: entries in all.
    """

    data: Mapping[int, str]
    twice: tuple[int, ...]
    differing: tuple[int, ...]
    repeated: tuple[int, ...]
    count: int


def read_answers(path: Path) -> Answers:
    """Reads a whole log.

    Raises:
        UserError: it cannot be read, or is no accuracy log (one that was cut is none).
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} is larger than {_MOST_BYTES >> 30} GiB.")
        entries = json.loads(read_regular(path))
        rows = [(int(e["qsl_idx"]), str(e["data"]), int(e["seq_id"])) for e in entries]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (ArithmeticError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no accuracy log ({error}).") from None
    data: dict[int, str] = {}
    twice: dict[int, None] = {}
    differing: dict[int, None] = {}
    sequence: set[int] = set()
    repeated: list[int] = []
    for sample, answer, number in rows:
        if number in sequence:
            repeated.append(number)
        sequence.add(number)
        if sample in data:
            twice[sample] = None
            if data[sample] != answer:
                differing[sample] = None
        else:
            data[sample] = answer
    return Answers(data, tuple(twice), tuple(differing), tuple(repeated), len(rows))


class TokenAnswer(NamedTuple):
    """One answer of a run whose tokens are timed.

    Attributes:
        tokens: all of it.
        first: what was told first; empty in Offline.
        counted: how many tokens LoadGen was told of.
    """

    tokens: tuple[int, ...]
    first: tuple[int, ...]
    counted: int


def read_token_answers(path: Path) -> list[TokenAnswer]:
    """Reads a whole log of int32 tokens.

    Raises:
        UserError: it cannot be read, or is no such log.
    """

    def tokens(data: str) -> tuple[int, ...]:
        return tuple(memoryview(bytes.fromhex(data)).cast("i"))

    try:
        entries = json.loads(read_regular(path))
        return [
            TokenAnswer(tokens(e["data"]), tokens(e.get("token_data", "")), int(e["token_count"]))
            for e in entries
        ]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no accuracy log of tokens ({error}).") from None


def is_cut(path: Path) -> bool:
    """Whether only the ends of a log are left, as a submission has it."""
    with open_regular(path) as file:
        return _MORE in file.read(20_000)


def cut(path: Path, viewable: int) -> bytes:
    """The log as a submission has it: the first and the last `viewable` bytes, or all where it is shorter."""
    size = path.stat().st_size
    with open_regular(path) as file:
        if size < viewable:
            return file.read()
        start = file.read(viewable)
        file.seek(size - viewable)
        return start + _MORE + file.read(viewable)


def accuracy_line(metric: str, quality: Quality, count: int, name: str) -> str:
    """What accuracy.txt says of `count` answers, as the official checker's pattern of the metric has it.

    Args:
        metric: the submission's, "accuracy" or "mAP".
        quality: a share, or a figure in per cent; several figures are told by their own names, as they are.
        count: how many samples were answered.
        name: what people call the metric.
    """
    if isinstance(quality, dict):
        return str(quality)
    percent = quality * 100 if quality <= 1 else quality
    if metric == "mAP":
        return f"mAP={percent:.3f}%"
    return f"{metric}={percent:.3f}%, good={round(percent * count / 100)}, total={count}, metric={name}"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
