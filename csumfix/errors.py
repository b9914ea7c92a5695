"""The one kind of error that a user sees: a line that says what, why, and what to do."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command; ``csumfix-rules`` uses the same."""

    OK = 0
    NEGATIVE = 1  # the question has been answered with no
    USAGE = 2
    MISSING = 3  # a program is not installed
    PERMISSION = 4
    KERNEL = 5  # the kernel refused, or lacks a feature
    IN_USE = 6  # somebody else has the queue, or the service runs already
    BROKEN = 7  # it began and came to no result: it stopped working, or the doctor is undecided


class CsumfixError(Exception):
    """A failure that is not a bug of ours.

    The message is one line: what failed, the likely cause, the remedy.
    """

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code
