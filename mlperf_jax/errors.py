"""The ways in which a command ends early, and what each tells the user; and how a reader refuses a file."""

from __future__ import annotations


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
