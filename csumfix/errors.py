"""The error that users see: one line that says what failed, why, and the remedy."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command; ``csumfix-rules`` uses the same."""

    OK = 0
    NEGATIVE = 1
    USAGE = 2
    MISSING = 3
    PERMISSION = 4
    KERNEL = 5
    IN_USE = 6
    BROKEN = 7


EXIT_MEANINGS = {
    Exit.OK: "done",
    Exit.NEGATIVE: "negative result (not running, not loaded, wrong checksums found)",
    Exit.USAGE: "wrong usage",
    Exit.MISSING: "a program is missing",
    Exit.PERMISSION: "no permission",
    Exit.KERNEL: "the kernel refused or lacks a feature",
    Exit.IN_USE: "in use by another program",
    Exit.BROKEN: "began and came to no result (failed while running, or undecided)",
}
"""What help, man page and docs say of each."""


class CsumfixError(Exception):
    """A failure that is not a bug of ours.

    The message is one line: what failed, the likely cause, the remedy.
    """

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code
