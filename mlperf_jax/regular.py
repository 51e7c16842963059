"""Files in trees that others made: what is no plain file there is not waited for."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a file for reading.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder: opening a pipe would wait for a writer.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return os.fdopen(handle, "rb")


def read_regular(path: Path) -> bytes:
    """As `open_regular`, a file's bytes."""
    with open_regular(path) as file:
        return file.read()
