"""The ways in which a command ends early, and what each tells the user; and how a reader refuses a file."""

from __future__ import annotations

import errno


class UserError(Exception):
    """A mistake that the user can mend: its text is one sentence naming the thing and the mend.

    The commands print it without a traceback and exit with status 2.
    """


class Refused(ValueError):
    """Bytes that are damaged, hostile, or not what their reader reads; the text is a phrase that says why."""


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C) and has saved what it needs to continue.

    Attributes:
        status: the exit status, 128 + the signal's number, as shells report it.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


_OF_MEMORY = ("RESOURCE_EXHAUSTED", "bad_alloc", "Out of memory", "exceeds available HBM")
_OF_THE_HOST = ("can't start new thread", "failed to map segment", "cannot allocate memory")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of a device or the host, or threads ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (RuntimeError, ImportError)):  # of the former are jax's errors
        return any(words in str(error) for words in _OF_MEMORY + _OF_THE_HOST)
    return isinstance(error, MemoryError)


def shortage(error: BaseException) -> str:
    """A sentence on what ran out (memory, threads, a disk), "" where nothing did."""
    reason = first_line(error)
    if ran_out_of_memory(error):
        return (
            f"Memory ran out ({reason}); use a smaller model, batch or set, or a machine with more of it, or raise "
            "the limits (ulimit -v, ulimit -u)."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f"{error.filename} cannot be written" if error.filename else "A file cannot be written"
        return f"{where} ({error.strerror}); free space and run the same command again."
    return ""


def first_line(error: BaseException) -> str:
    """What an error says first, for a sentence in parentheses."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
