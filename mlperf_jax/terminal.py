"""What commands print, made fit for the terminal or the pipe that it goes to."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TextIO, cast

_Arguments = ParamSpec("_Arguments")

# Logs, names and files of others may hold what would move the cursor, set colours, or turn the direction of writing.
_CONTROL = [
    *range(9),
    *range(11, 32),
    *range(127, 160),
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
]
_SHOWN = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROL}
# A line of progress of ours, which is written over the one before it.
_IN_PLACE = re.compile(r"(\r)(.*)(\x1b\[K)", re.DOTALL)
_LONGEST_NAME = 60  # characters of a name that is shown


def shown(text: str) -> str:
    """The text with its control characters written out; lines and tabs stay."""
    if text.isprintable():
        return text
    if match := _IN_PLACE.fullmatch(text):
        return match[1] + match[2].translate(_SHOWN) + match[3]
    return text.translate(_SHOWN)


class _Plain:
    """A stream that shows control characters, and those that its encoding lacks, as escapes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        plain = shown(text)
        try:
            self._stream.write(plain)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(plain.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    with (
        contextlib.redirect_stdout(cast(TextIO, _Plain(sys.stdout))),
        contextlib.redirect_stderr(cast(TextIO, _Plain(sys.stderr))),
    ):
        yield


def command(run: Callable[_Arguments, int]) -> Callable[_Arguments, int]:
    """Makes what runs a command, and returns its exit status, print plainly.

    Where who reads the output has gone (`| head`) it ends as signal SIGPIPE would end it, or with its own status where
    it had nothing else to do. A name that the file system does not take is a mistake of the user's.
    """

    @functools.wraps(run)
    def plainly(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> int:
        with _plain():
            try:
                status = run(*args, **kwargs)
            except BrokenPipeError:
                status = 128 + signal.SIGPIPE
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                name = str(error.filename)
                print(
                    f"mlperf_jax: {name[:_LONGEST_NAME]}... has {len(name):,} characters, more than the file system "
                    "takes; use shorter names.",
                    file=sys.stderr,
                )
                status = 2
            for stream in (sys.stdout, sys.stderr):
                _flush(stream)
        return status

    return plainly


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except BrokenPipeError:
        # Or Python would complain at its end that what it still holds cannot be written.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
    except ValueError:
        pass  # it was closed
