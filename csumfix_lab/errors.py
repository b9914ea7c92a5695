"""The one exception of the lab that is meant for users."""

from csumfix.errors import CsumfixError, Exit


class LabError(CsumfixError):
    """One line: what failed, the likely cause, the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.KERNEL)
